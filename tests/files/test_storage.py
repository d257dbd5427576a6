"""Files behind URLs, on file:// (the same code talks to s3:// and gs://), and run directories that are copied there."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from conftest import make_tiny
from fsspec.implementations.memory import MemoryFile

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.source import nearby
from fibec_ray.errors import DataError, StorageError
from fibec_ray.files.storage import Storage, is_url, refuse_secrets
from fibec_ray.models.spec import Backbone
from fibec_ray.runs import mirror as mirrors
from fibec_ray.runs.mirror import Mirror, mirrored
from fibec_ray.runs.simulation import simulate


@pytest.fixture
def bucket(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path / 'bucket'}/")


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_there_and_back(bucket: Storage, tmp_path: Path) -> None:
    assert not bucket.exists() and bucket.files() == {}
    write(tmp_path / "here", a="one", b__c="three")
    bucket.upload(tmp_path / "here" / "a", "a")
    bucket.upload(tmp_path / "here" / "b" / "c", "b/c")
    assert bucket.is_folder() and bucket.files() == {"a": 3, "b/c": 5}
    assert bucket.download(tmp_path / "back") == 8
    assert contents(tmp_path / "back") == contents(tmp_path / "here")
    bucket.remove("a")
    bucket.remove("a")  # gone is gone
    assert bucket.files() == {"b/c": 5}


def test_what_pyarrow_does_not_know_fsspec_does(tmp_path: Path) -> None:
    memory = Storage(f"memory://{tmp_path.name}/runs")
    write(tmp_path / "here", a="one")
    memory.upload(tmp_path / "here" / "a", "b/a")
    assert memory.is_folder() and memory.files() == {"b/a": 3}
    assert memory.download(tmp_path / "back") == 3 and contents(tmp_path / "back") == {"b/a": "one"}
    memory.remove("b/a")
    assert memory.files() == {}


@pytest.mark.parametrize("url", ["s3:/half", "nowhere://bucket", "file://relative/path"])
def test_what_is_no_url_of_a_storage(url: str) -> None:
    with pytest.raises(StorageError, match="no such storage .*allowed: s3://BUCKET"):
        Storage(url)


def test_paths_are_no_urls() -> None:
    assert is_url("s3://b/x") and not is_url("/a/b") and not is_url(Path("s3://b/x"))


def test_what_cannot_be_written_says_where(tmp_path: Path) -> None:
    write(tmp_path, file="")
    with pytest.raises(StorageError, match=r"file://.*file/runs: x cannot be written .*check the URL, and the cred"):
        Storage(f"file://{tmp_path}/file/runs").upload(tmp_path / "file", "x")


# --- names that lead elsewhere


def hostile(folder: str, *names: str) -> Storage:
    """A store in memory whose owner wrote keys as they are."""
    memory = fsspec.filesystem("memory")
    for name in ("good", *names):
        path = f"/{folder}/{name}"
        memory.store[path] = MemoryFile(memory, path, b"planted")
    return Storage(f"memory://{folder}")


OUTSIDE = ["a\x1b[31mb", "a\nb",
           "../planted", "a/../../planted", "a/..", "./planted", "/planted", "a//planted", "..\\planted", "c:planted",
           "a\0b", "C:\\planted", "a/../../../../../../../../tmp/planted"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_its_folder_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    bucket = hostile(f"{tmp_path.name}/deep/er/set", name)
    with pytest.raises(StorageError, match="does not stay below a folder.*remove that file there") as caught:
        bucket.download(tmp_path / "here" / "copy")
    assert repr(name)[1:-1] in str(caught.value)
    with pytest.raises(StorageError, match="does not stay below a folder"):
        bucket.files()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../planted", "/planted", "a//planted", "", "a\\b", "d/" * 1500 + "d"])
def test_names_that_are_given_are_checked_too(name: str, bucket: Storage, tmp_path: Path) -> None:
    write(tmp_path, file="one")
    for act in (
        lambda: bucket.download(tmp_path / "here", [name]),
        lambda: bucket.upload(tmp_path / "file", name),
        lambda: bucket.remove(name),
    ):
        with pytest.raises(StorageError, match="does not stay below a folder"):
            act()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_that_is_a_file_and_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the name 'a/b' is a file and a folder there; remove one of them"):
        hostile(tmp_path.name).download(tmp_path / "here", ["good", "a/b", "a/b/c"])
    assert not (tmp_path / "here").exists()


def test_a_link_that_leads_out_of_the_folder_is_not_followed(bucket: Storage, tmp_path: Path) -> None:
    write(tmp_path, file="one")
    bucket.upload(tmp_path / "file", "a/b")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="'a/b' leads out of .*here through a link"):
        bucket.download(tmp_path / "here")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_names_that_only_look_odd_are_copied(tmp_path: Path) -> None:
    bucket = hostile(tmp_path.name, "..a/b..", "a b/c", "...", "é", "-x")
    assert bucket.download(tmp_path / "here") == 6 * len("planted")
    assert set(contents(tmp_path / "here")) == {"good", "..a/b..", "a b/c", "...", "é", "-x"}


def test_a_data_set_with_a_name_that_leads_out_is_refused(tmp_path: Path) -> None:
    hostile(f"{tmp_path.name}/a/b/set", "../../../../planted")
    with (
        pytest.raises(StorageError, match="'../../../../planted' does not stay"),
        nearby(f"memory://{tmp_path.name}/a/b/set"),
    ):
        pass


# --- secrets in URLs

SECRET = "wJalrXUtnFEMI"
WITH_SECRETS = {
    f"s3://AKIA:{SECRET}@bucket/runs": "AWS_ACCESS_KEY_ID",
    f"s3://AKIA:{SECRET}/K7MDENG@bucket/runs": "AWS_ACCESS_KEY_ID",
    f"s3://AKIA:12/{SECRET}@bucket/my runs": "AWS_ACCESS_KEY_ID",
    f"s3://AKIA%3A{SECRET}@bucket": "AWS_ACCESS_KEY_ID",
    f"S3://{SECRET}@bucket": "AWS_ACCESS_KEY_ID",
    f"s3:/AKIA:{SECRET}@bucket/runs": "AWS_ACCESS_KEY_ID",
    f"s3://bucket/runs?access_key=AKIA&secret_key={SECRET}": "AWS_ACCESS_KEY_ID",
    f"s3://bucket/runs?region=us-east-1&session%5Ftoken={SECRET}": "AWS_ACCESS_KEY_ID",
    f"s3://bucket/runs?endpoint_override=http%3A%2F%2Fme%3A{SECRET}%40host": "AWS_ACCESS_KEY_ID",
    f"gs://me:{SECRET}@bucket/runs": "GOOGLE_APPLICATION_CREDENTIALS",
    f"https://me:{SECRET}@example.org/runs": "in the environment",
    f"https://{SECRET}@example.org/runs": "in the environment",
    f"https://example.org/x?X-Amz-Credential=AKIA&X-Amz-Signature={SECRET}": "in the environment",
    f"https://example.org/x?sv=2024&sig={SECRET}": "in the environment",
    f"https://example.org/x?a=1;api-key={SECRET}": "in the environment",
    f"https://example.org/x#access_token={SECRET}": "in the environment",
    f"https://example.org/x;token={SECRET}?version=2": "in the environment",
    f"https://example.org/x?subscription-key={SECRET}": "in the environment",
    f"abfs://container:{SECRET}@account.dfs.core.windows.net/x": "AZURE_STORAGE_ACCOUNT_KEY",
    f"simplecache::s3://AKIA:{SECRET}@bucket/runs": "AWS_ACCESS_KEY_ID",
}


@pytest.mark.parametrize("url", WITH_SECRETS)
def test_a_url_with_a_secret_is_refused_and_the_secret_is_not_said(url: str) -> None:
    for refuse in (Storage, lambda url: DataConfig(path=url), lambda url: Backbone(name=url)):
        with pytest.raises(StorageError, match="the URL has .*; remove it, and set ") as caught:
            refuse(url)
        said = str(caught.value)
        assert WITH_SECRETS[url] in said and SECRET not in said and "AKIA" not in said and "\n" not in said


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/runs?region=eu-west-1&endpoint_override=localhost:9000&scheme=http",
        "abfs://container@account.dfs.core.windows.net/runs",
        "hdfs://me@namenode:8020/runs/a@b",
        "hdfs://[::1]:8020/runs",
        "file:///data/a@b:c/key=1",
        "/data/s3:x@y",
        "org/model",
        "memory://a/b",
    ],
)
def test_a_url_without_a_secret_passes(url: str) -> None:
    refuse_secrets(url, "data.path")
    assert DataConfig(path=url).path == url


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{config}", "--out", "{url}"],
        ["run", "{config}", "data.path={url}"],
        ["run", "{config}", "data={{path: '{url}'}}"],
        ["run", "{config}", "data.path=[{url}]"],
        ["run", "{config}", "backbone.name={url}"],
        ["run", "{other}"],
        ["plan", "{config}", "--out", "{url}"],
        ["report", "{url}"],
        ["compare", "runs/a", "{url}"],
        ["resume", "{url}"],
        ["submit", "{config}", "--out", "{url}"],
    ],
)
def test_no_command_repeats_or_keeps_a_secret(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"s3://AKIA:{SECRET}/x@bucket/set"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(make_tiny()))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(make_tiny(data={"path": url})))
    assert main([text.format(config="config.yaml", other="other.yaml", url=url) for text in arguments]) == 2
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err and said.err.count("\n") == 1 and "AWS_SECRET_ACCESS_KEY" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "other.yaml"]


def test_errors_leave_a_urls_query_out(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        Storage("s3://bucket/x?mystery=value")
    assert "value" not in str(caught.value)


# --- mirrors


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_only_what_changed_travels_and_what_went_goes(bucket: Storage, tmp_path: Path, monkeypatch: Any) -> None:
    sent: list[str] = []
    upload = Storage.upload
    monkeypatch.setattr(Storage, "upload", lambda self, path, name: (sent.append(name), upload(self, path, name)))
    folder = tmp_path / "run"
    mirror = Mirror(bucket, folder, alike=False)
    names = ["checkpoints/run.json", "rounds/0", "checkpoints/1/server", "checkpoints/1/manifest.json", "summary.json"]
    for name in names:
        put(folder / name, "first")
    (folder / ".part").write_text("half written")
    mirror.sync()
    assert sent == ["checkpoints/run.json", "checkpoints/1/server", "rounds/0", *names[3:]]
    shutil.rmtree(folder / "checkpoints" / "1")
    put(folder / "checkpoints/2/manifest.json", "newer")
    mirror.sync()
    assert sent[5:] == ["checkpoints/2/manifest.json"]
    assert bucket.files().keys() == {names[0], "rounds/0", "checkpoints/2/manifest.json", "summary.json"}


def test_a_terminated_run_leaves_all_it_has(bucket: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), mirrored(Mirror(bucket, folder, alike=False), print):
        write(folder, rounds__0="r")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert bucket.files() == {"rounds/0": 1}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_copy_that_fails_is_tried_again(bucket: Storage, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(mirrors, "EVERY_S", 0.05)
    folder, warnings = tmp_path / "run", list[str]()
    mirror = Mirror(bucket, folder, alike=False)
    write(tmp_path, bucket="a file where a folder should be")
    with mirrored(mirror, warnings.append):
        write(folder, rounds__0="r")
        while not warnings:
            time.sleep(0.01)
        (tmp_path / "bucket").unlink()
    assert "cannot be written" in warnings[0] and "trying again" in warnings[0]
    assert bucket.files() == {"rounds/0": 1}


# --- data


def test_a_data_set_behind_a_url_is_read(tmp_path: Path) -> None:
    rows = "".join(f"sentence {i},{i % 2}\n" for i in range(24))
    write(tmp_path / "sets", train="", validation="")
    for split in ("train", "validation"):
        extra = "" if split == "train" else "one more,1\n"
        (tmp_path / "sets" / f"{split}.csv").write_text(f"sentence,label\n{rows}{extra}")
        (tmp_path / "sets" / split).unlink()
    runs = {}
    for name, path in (("url", f"file://{tmp_path}/sets"), ("path", str(tmp_path / "sets"))):
        settings = make_tiny(rounds=1, task=None, data=None)
        settings |= {"task": task("sst2"), "data": {"path": path, "max_length": 16}}
        runs[name] = simulate(check(settings, "test"), tmp_path / name)
    assert runs["url"].adapter_digest == runs["path"].adapter_digest
    assert "file://" in (tmp_path / "url" / "config.yaml").read_text(), "not the copy, which has gone"


def task(name: str) -> Any:
    from conftest import named

    return named("tasks", name)


def test_nothing_behind_a_url(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="data.path: file://.*none: no such file or folder"),
        nearby(f"file://{tmp_path}/none"),
    ):
        pass
