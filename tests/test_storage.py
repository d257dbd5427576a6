"""Files behind URLs, on file:// (the same code talks to s3:// and gs://), and run directories that are copied there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tiny

from fibec_ray.config.load import check
from fibec_ray.data.remote import nearby
from fibec_ray.errors import DataError, StorageError
from fibec_ray.jobs import mirror as mirrors
from fibec_ray.jobs.mirror import Mirror, mirrored
from fibec_ray.simulation import simulate
from fibec_ray.storage import Storage, is_url


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


# --- mirrors


def test_only_what_changed_travels_and_what_went_goes(bucket: Storage, tmp_path: Path, monkeypatch: Any) -> None:
    sent: list[str] = []
    upload = Storage.upload
    monkeypatch.setattr(Storage, "upload", lambda self, path, name: (sent.append(name), upload(self, path, name)))
    folder = tmp_path / "run"
    mirror = Mirror(bucket, folder)
    write(folder, summary_json="1", rounds__0="r", checkpoints__1__manifest_json="m", checkpoints__1__server="s")
    (folder / ".part").write_text("half written")
    os.rename(folder / "summary_json", folder / "summary.json")
    os.rename(folder / "checkpoints/1/manifest_json", folder / "checkpoints/1/manifest.json")
    mirror.sync()
    assert sent == ["checkpoints/1/server", "rounds/0", "checkpoints/1/manifest.json", "summary.json"]
    (folder / "rounds" / "0").unlink()
    write(folder, rounds__1="new")
    mirror.sync()
    assert sent[4:] == ["rounds/1"] and "rounds/0" not in bucket.files()

    elsewhere = Mirror(bucket, tmp_path / "elsewhere")
    elsewhere.bring()
    elsewhere.sync()
    assert sent[5:] == [] and contents(tmp_path / "elsewhere").keys() == bucket.files().keys()


def test_a_terminated_run_leaves_all_it_has(bucket: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), mirrored(Mirror(bucket, folder), print):
        write(folder, rounds__0="r")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert bucket.files() == {"rounds/0": 1}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_copy_that_fails_is_tried_again(bucket: Storage, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(mirrors, "EVERY_S", 0.05)
    folder, warnings = tmp_path / "run", list[str]()
    write(tmp_path, bucket="a file where a folder should be")
    with mirrored(Mirror(bucket, folder), warnings.append):
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
