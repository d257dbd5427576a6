"""Which job server is talked to, and with what token; no cluster is needed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fibec_ray.cli.main import main
from fibec_ray.errors import ClusterError
from fibec_ray.jobs.address import as_url, is_loopback, settle, use_token


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def home_with_token(folder: Path, mode: int = 0o600) -> dict[str, str]:
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("t" * 32)
    (folder / ".ray" / "auth_token").chmod(mode)
    return {"HOME": str(folder)}


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("head:8265", "http://head:8265"),
        ("https://ray.example.com/", "https://ray.example.com"),
        ("[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_addresses(given: str, url: str) -> None:
    assert as_url(given) == url


@pytest.mark.parametrize("given", ["ray://head:10001", "http://", "http://head:port", "http://head:99999", ""])
def test_what_no_job_server_has(given: str) -> None:
    with pytest.raises(ClusterError, match="not the URL of a job server; give http://HOST:8265"):
        as_url(given)


def test_what_is_asked_for_wins_over_the_environment(listening: str, tmp_path: Path) -> None:
    """Ray would have it the other way round."""
    environment = {"HOME": str(tmp_path), "RAY_ADDRESS": "http://other:1", "RAY_API_SERVER_ADDRESS": "http://third:1"}
    assert settle(listening, environment) == f"http://{listening}"
    assert "RAY_ADDRESS" not in environment and "RAY_API_SERVER_ADDRESS" not in environment
    assert settle(None, {"HOME": str(tmp_path), "RAY_ADDRESS": listening}) == f"http://{listening}"


def test_loopback() -> None:
    assert all(is_loopback(as_url(host)) for host in ("127.0.0.1:1", "localhost:1", "[::1]:1", "127.8.8.8:1"))
    assert not any(is_loopback(as_url(host)) for host in ("10.0.0.1:1", "head:1", "localhost.example.com:1"))


def test_plain_http_to_another_machine_needs_a_token(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    with pytest.raises(ClusterError, match=r"http://10.0.0.1:8265: .*put the cluster's token into .*chmod 600"):
        use_token("http://10.0.0.1:8265", environment)
    use_token("https://10.0.0.1:8265", environment)
    use_token("http://127.0.0.1:8265", environment)
    assert environment["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize("where", ["home", "file", "variable"])
def test_a_token_goes_along_where_there_is_one(where: str, tmp_path: Path) -> None:
    environment = home_with_token(tmp_path)
    if where == "file":
        environment = {"HOME": "/none", "RAY_AUTH_TOKEN_PATH": str(tmp_path / ".ray" / "auth_token")}
    elif where == "variable":
        environment = {"HOME": "/none", "RAY_AUTH_TOKEN": "t" * 32}
    use_token("http://10.0.0.1:8265", environment)
    assert environment["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620])
def test_a_token_that_others_can_use_is_refused(mode: int, tmp_path: Path) -> None:
    environment = home_with_token(tmp_path, mode)
    with pytest.raises(ClusterError, match=r"other users of this machine may use this token; run `chmod 600 "):
        use_token("http://127.0.0.1:8265", environment)


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN_PATH: /none: no such file"):
        use_token("http://127.0.0.1:8265", {"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": "/none"})


def test_the_command_refuses_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing listens there; a machine that is not ours, without a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    for address, says in (("127.0.0.1:1", "nothing answers"), ("http://192.0.2.1:8265", "without a token")):
        assert main(["jobs", "--address", address]) == 2
        out, err = capsys.readouterr()
        assert out == "" and says in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "given",
    [
        "http://[::1",
        "http://[",
        "http://a b",
        "http://head/\n",
        "http://head?x=1",
        "http://head#x",
        "http://a\0b",
        "http://][",
    ],
)
def test_addresses_that_are_no_urls_at_all(given: str) -> None:
    with pytest.raises(ClusterError, match="not the URL of a job server"):
        as_url(given)


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter2@127.0.0.1:1", "me:hunter2@127.0.0.1:1", "https://hunter2@127.0.0.1:1/x", "ray://me:hunter2@head",
        "http://me:hunter2@10.0.0.1:8265", "http://me:hunter2@[::1", "http://head:1/?token=hunter2", "http://me:hun#ter2@h:1",
        "http://a@hunter2@127.0.0.1:1",
    ],
)  # fmt: skip
def test_a_password_in_an_address_is_never_printed(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    for way in (["--address", address], []):
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        assert main(["jobs", *way]) == 2
        out, err = capsys.readouterr()
        assert out == "" and not any(secret in err for secret in ("hunter2", "ter2", "me:")) and err.count("\n") == 1


def test_libraries_that_repeat_the_address_do_not_repeat_the_password(listening: str, tmp_path: Path) -> None:
    from fibec_ray.jobs.client import Cluster

    cluster = Cluster.__new__(Cluster)
    cluster._secret = "me:hunter2"
    assert cluster._said("cannot reach http://me:hunter2@head/api") == "cannot reach http://head/api"


def test_a_token_in_clear_text_to_another_machine_is_warned_of(listening: str, tmp_path: Path) -> None:
    """Not on this machine, and not by https."""
    said: list[str] = []
    environment = home_with_token(tmp_path)
    with pytest.raises(ClusterError, match="nothing answers"):
        settle("http://192.0.2.1:1", environment, said.append)
    assert len(said) == 1 and said[0].startswith("--address: http://192.0.2.1:1: the token goes there in clear text")
    settle(listening, environment, said.append)
    with pytest.raises(ClusterError, match="nothing answers"):
        settle("https://192.0.2.1:1", environment, said.append)
    assert len(said) == 1
