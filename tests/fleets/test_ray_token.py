"""Ray's token: made, found and kept so that only its user can read it; no cluster is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fibec_ray.environment import drop_empty
from fibec_ray.errors import ClusterError
from fibec_ray.fleets.ray.token import ensure_token, has_token, protect_token


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a user with a fresh home folder."""
    return {"HOME": str(tmp_path)}


def token(home: dict[str, str]) -> Path:
    return Path(home["HOME"]) / ".ray" / "auth_token"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_token_is_readable_by_its_user_alone_whatever_the_umask(home: dict[str, str], umask: int) -> None:
    before = os.umask(umask)
    try:
        assert ensure_token(home) is None
    finally:
        os.umask(before)
    assert mode(token(home)) == 0o600 and mode(token(home).parent) == 0o700
    assert len(token(home).read_text()) == 64 and list(token(home).parent.iterdir()) == [token(home)]
    assert "RAY_AUTH_TOKEN" not in home


def test_a_token_that_is_there_stays(home: dict[str, str]) -> None:
    ensure_token(home)
    first = token(home).read_text()
    assert ensure_token(home) is None and token(home).read_text() == first


def test_an_empty_token_file_gets_a_token(home: dict[str, str]) -> None:
    """A process that died while it wrote may have left one."""
    token(home).parent.mkdir()
    token(home).write_text("\n")
    ensure_token(home)
    assert len(token(home).read_text()) == 64 and mode(token(home)) == 0o600


@pytest.mark.parametrize("what", ["folder", "link"])
def test_what_is_no_file_in_the_token_s_place_leaves_the_token_in_memory(home: dict[str, str], what: str) -> None:
    token(home).parent.mkdir()
    token(home).mkdir() if what == "folder" else token(home).symlink_to("nowhere")
    assert ensure_token(home) is None and len(home["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
def test_a_token_of_another_user_is_refused(home: dict[str, str]) -> None:
    ensure_token(home)
    os.chown(token(home), 12345, 12345)
    for ask in (has_token, ensure_token):
        with pytest.raises(ClusterError, match="belongs to another user, who knows this token; remove it"):
            ask(home)


@pytest.mark.parametrize("home_folder", ["/proc/1/none", "a file"])
def test_a_home_that_cannot_be_written_leaves_the_token_in_memory(tmp_path: Path, home_folder: str) -> None:
    (tmp_path / "a file").touch()
    environment = {"HOME": str(tmp_path / home_folder)}
    assert ensure_token(environment) is None and len(environment["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize("open_to", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_a_token_that_others_can_use_is_repaired_by_a_run_and_refused_elsewhere(
    home: dict[str, str], open_to: int
) -> None:
    ensure_token(home)
    token(home).chmod(open_to)
    with pytest.raises(ClusterError, match="other users of this machine may use this token; run `chmod 600 "):
        has_token(home)
    note = ensure_token(home)
    assert note is not None and "its mode is 0600 now" in note and mode(token(home)) == 0o600
    assert has_token(home) and protect_token(home) is None


def test_no_token_is_made_where_the_user_says_so(home: dict[str, str], tmp_path: Path) -> None:
    assert ensure_token(home | {"RAY_AUTH_MODE": "disabled"}) is None and not token(home).exists()
    assert ensure_token(home | {"RAY_AUTH_TOKEN": "t" * 64}) is None and not token(home).exists()
    with pytest.raises(ClusterError, match="RAY_AUTH_TOKEN_PATH: /none: no such file"):
        ensure_token(home | {"RAY_AUTH_TOKEN_PATH": "/none"})


def test_variables_of_ray_that_are_set_to_nothing_are_unset() -> None:
    environment = {"RAY_ADDRESS": "", "RAY_TMPDIR": " ", "RAY_AUTH_MODE": "token", "HOME": ""}
    drop_empty(environment)
    assert environment == {"RAY_AUTH_MODE": "token"}
