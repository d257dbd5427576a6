"""Names, places and what travels with a job; and a run that begins or goes on. No cluster is needed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_digits, make_tiny
from runs.interrupted import interrupted

from fibec_ray.config.load import check, load_experiment
from fibec_ray.errors import ClusterError, ConfigError, DataError, JobFailed, ModelError, RunDirError, StorageError
from fibec_ray.jobs.client import Job
from fibec_ray.jobs.follow import last_words, refuse_failure
from fibec_ray.jobs.messages import in_our_words
from fibec_ray.jobs.parcel import MOST_DATA_BYTES, packed, take_along
from fibec_ray.jobs.submit import RUNS, checked, free_name, next_attempt, place_of, quoted
from fibec_ray.runs.begin import begin, workplace
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.simulation import simulate


def job(id_: str, status: str = "SUCCEEDED", name: str | None = None) -> Job:
    return Job(id_, status, "", 0, None, {"fibec_name": name or id_})


def test_submissions_of_a_name_are_numbered() -> None:
    jobs = [job("a"), job("a.2", "FAILED", "a"), job("b", "RUNNING")]
    assert next_attempt("c", jobs) == "c"
    assert next_attempt("a", jobs) == "a.3"
    with pytest.raises(ClusterError, match="--name: b: its job b is running; `fibec-ray stop b` it first"):
        next_attempt("b", jobs)


def test_without_a_name_every_submission_is_a_new_run() -> None:
    assert free_name("tiny", []) == "tiny"
    assert free_name("tiny", [job("tiny"), job("tiny.2", name="tiny"), job("tiny-2")]) == "tiny-3"
    assert free_name("a b/c", []) == "a-b-c" and free_name("/", []) == "run"
    with pytest.raises(ConfigError, match="--name: 'a.b': expected letters"):
        checked("a.b")


def test_places() -> None:
    assert place_of("a", None) == f"{RUNS}/a" and quoted(place_of("a", None)) == f'"{RUNS}"/a'
    assert place_of("a", "/srv/my runs/") == "/srv/my runs/a" and quoted("/srv/my runs/a") == "'/srv/my runs/a'"
    assert place_of("a", "file:///srv") == "file:///srv/a"
    with pytest.raises(ConfigError, match="--out: runs: is relative, and a job's own folder is removed"):
        place_of("a", "runs")
    with pytest.raises(StorageError, match="no such storage"):
        place_of("a", "what://is/this")


def test_code_settings_and_small_data_travel(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sets" / "mine").mkdir(parents=True)
    (tmp_path / "sets" / "mine" / "train.csv").write_text("sentence,label\na,0\n")
    settings = make_digits(fleet={"kind": "ray"}, data={"path": "sets/mine"})
    with packed(check(settings, "test"), installed=False) as env:
        work, (code,) = Path(env["working_dir"]), map(Path, env["py_modules"])
        sent = load_experiment(work / "experiment.yaml")
        assert sent.fleet.address == "auto", "not a cluster of its own"
        assert sent.data.path == "inputs/mine" and (work / "inputs" / "mine" / "train.csv").is_file()
        assert (code / "configs" / "methods" / "fedavg.yaml").is_file() and (code / "cli" / "main.py").is_file()
        assert not list(code.rglob("__pycache__"))
    assert not work.exists()
    with packed(check(settings, "test"), installed=True) as env:
        assert "py_modules" not in env


def test_data_that_stay_where_they_are(tmp_path: Path) -> None:
    for path in ("/srv/sets", "s3://bucket/sets"):
        with packed(check(make_digits(data={"path": path}), "test"), installed=True) as env:
            assert yaml.safe_load((Path(env["working_dir"]) / "experiment.yaml").read_text())["data"]["path"] == path
    with pytest.raises(DataError, match="data.path: none/here: no such file or folder here"):
        take_along(Path("none/here"), tmp_path)
    with (tmp_path / "big").open("wb") as file:
        file.truncate(MOST_DATA_BYTES + 1)
    with pytest.raises(DataError, match=r"data.path: .*big has 100 MB, and 100 may travel .*s3://"):
        take_along(tmp_path / "big", tmp_path / "inputs")


def test_the_last_words_of_a_job() -> None:
    assert last_words("a\nfibec-ray: no data\nTraceback\n") == "no data"
    assert last_words("a\nKilled\n\n") == "Killed" and last_words("") == ""


# --- run --resume


def test_a_run_goes_on_or_begins(tmp_path: Path) -> None:
    settings = make_digits(rounds=4)
    experiment, folder = check(settings, "test"), tmp_path / "run"
    whole = simulate(experiment, tmp_path / "whole")
    interrupted(settings, folder, 2)
    run = begin(experiment, folder, True, Callback())
    assert run is not None and run.adapter_digest == whole.adapter_digest
    assert begin(experiment, folder, True, Callback()) is None, "it is finished"
    new = begin(experiment, tmp_path / "new", True, Callback())
    assert new is not None and new.adapter_digest == whole.adapter_digest
    with pytest.raises(RunDirError, match="is not empty"):
        begin(experiment, folder, False, Callback())
    with pytest.raises(RunDirError, match=r"holds a run of another experiment \(seed is 3 there, 9 here\)"):
        begin(check(settings | {"seed": 9}, "test"), folder, True, Callback())


def test_what_stopped_before_it_began_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "run" / "data").mkdir(parents=True)
    assert begin(check(make_digits(rounds=1), "test"), tmp_path / "run", True, Callback()) is not None
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(RunDirError, match="is not empty"):
        begin(check(make_digits(rounds=1), "test"), tmp_path / "mine", True, Callback())


def test_a_run_behind_a_url_goes_on_on_another_machine(tmp_path: Path, monkeypatch: Any) -> None:
    experiment = check(make_digits(rounds=3), "test")
    whole = simulate(experiment, tmp_path / "whole")
    out = f"file://{tmp_path}/bucket/run"

    class Stop(Callback):
        def on_round_end(self, row: dict[str, Any]) -> None:
            if row["round"] == 1:
                raise KeyboardInterrupt

    monkeypatch.setenv("FIBEC_RAY_RUNS", str(tmp_path / "first machine"))
    with pytest.raises(KeyboardInterrupt), workplace(out, True, print) as folder:
        begin(experiment, folder, True, Stop())
    assert json.loads((tmp_path / "bucket/run/summary.json").read_text())["status"] == "failed"
    monkeypatch.delenv("FIBEC_RAY_RUNS")
    notes: list[str] = []
    callback = Callback()
    monkeypatch.setattr(callback, "on_message", notes.append)
    with workplace(out, True, print) as folder:
        run = begin(experiment, folder, True, callback)
        with pytest.raises(RunDirError, match="another process on this machine runs it"), workplace(out, True, print):
            pass
    with pytest.raises(RunDirError, match=r"bucket/run: is not empty; .*--resume"), workplace(out, False, print):
        pass
    assert run is not None and run.adapter_digest == whole.adapter_digest
    assert "resuming at round" in str(notes)
    assert json.loads((tmp_path / "bucket/run/summary.json").read_text())["status"] == "finished"


# --- data that travel


def a_set(folder: Path) -> Path:
    folder.mkdir()
    (folder / "train.csv").write_text("sentence,label\na,0\n")
    return folder


def travelled(data: Path, folder: Path) -> list[str]:
    take_along(data, folder / "work" / "inputs")
    return sorted(
        path.relative_to(folder / "work").as_posix() for path in (folder / "work").rglob("*") if path.is_file()
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path


@pytest.mark.parametrize(("where", "path"), [("set", "."), ("set/below", ".."), ("set", "../set"), (".", "./set/")])
def test_data_by_other_names_of_their_folder(where: str, path: str, work: Path, monkeypatch: Any) -> None:
    (a_set(work / "set") / "below").mkdir()
    (work / "set" / ".env").write_text("secret")
    monkeypatch.chdir(work / where)
    assert travelled(Path(path), work) == ["inputs/set/train.csv"]


def test_links_inside_a_data_set_travel_as_files(work: Path) -> None:
    folder = a_set(work / "set")
    (folder / "test.csv").symlink_to("train.csv")
    (folder / "parts").mkdir()
    (folder / "again").symlink_to("parts")
    (folder / "parts" / "a.csv").write_text("x")
    (work / "named").symlink_to(folder)
    assert travelled(work / "named", work) == [
        f"inputs/set/{name}" for name in ("again/a.csv", "parts/a.csv", "test.csv", "train.csv")
    ]
    assert not any(path.is_symlink() for path in (work / "work").rglob("*"))


HOSTILE: dict[str, tuple[Any, str]] = {
    "link out": (lambda path: path.symlink_to("/etc/hostname"), "is a link out of the folder, to /etc/hostname"),
    "link up": (lambda path: path.symlink_to(".."), "is a link"),
    "link to itself": (lambda path: path.symlink_to(path.name), "is a link that leads nowhere"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "is a link that leads nowhere; remove it"),
    "the folder itself": (lambda path: path.symlink_to("."), "is a link to a folder that holds it; remove it"),
    "pipe": (os.mkfifo, "is neither a file nor a folder; remove it"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_data_that_cannot_travel(kind: str, work: Path) -> None:
    make, says = HOSTILE[kind]
    make(a_set(work / "set") / "odd")
    with pytest.raises(DataError, match=f"data.path: .*/set/odd: {says}"):
        travelled(work / "set", work)


def test_data_that_are_no_data(work: Path) -> None:
    (work / "empty").mkdir()
    (work / "dangling").symlink_to("nowhere")
    os.mkfifo(work / "pipe")
    for name, says in (("empty", "holds no files"), ("dangling", "no such file or folder"), ("pipe", "cannot be read")):
        with pytest.raises(DataError, match=f"data.path: .*{name}: {says}"):
            travelled(work / name, work)


# --- backbones that travel, and other files


def a_backbone(folder: Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return make_tiny(backbone={"init": "pretrained", "config": None, "tokenizer": None, **changes})


def sent_with(settings: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The experiment as the cluster gets it; `wanted` is a file that travels along."""
    with packed(check(settings, "test"), installed=True) as env:
        assert (Path(env["working_dir"]) / wanted).is_file()
        found: dict[str, Any] = yaml.safe_load((Path(env["working_dir"]) / "experiment.yaml").read_text())
        return found


def test_a_relative_backbone_travels(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    settings = a_backbone(tmp_path / "models" / "mine", name="models/mine")
    sent = sent_with(settings, "inputs/name/mine/config.json")
    assert sent["backbone"]["name"] == "inputs/name/mine"
    settings["backbone"] |= {"name": "minilm", "tokenizer": "./models/mine"}
    sent = sent_with(settings, "inputs/tokenizer/mine/config.json")
    assert (sent["backbone"]["name"], sent["backbone"]["tokenizer"]) == ("minilm", "inputs/tokenizer/mine")


def test_paths_from_home_are_expanded(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = a_backbone(tmp_path / "models" / "mine", name="~/models/mine")
    assert sent_with(settings, "inputs/name/mine/config.json")["backbone"]["name"] == "inputs/name/mine"
    a_set(tmp_path / "set")
    sent = sent_with(make_digits(data={"path": "~/set"}), "inputs/set/train.csv")
    assert sent["data"]["path"] == "inputs/set"
    assert place_of("a", "~/runs") == "~/runs/a" and quoted("~/my runs/a") == "\"$HOME\"/'my runs/a'"


def test_backbones_that_cannot_travel_are_refused_before_submission(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    settings = a_backbone(tmp_path / "big", name="big")
    with (tmp_path / "big" / "model.safetensors").open("wb") as file:
        file.truncate(MOST_DATA_BYTES + 1)
    with pytest.raises(ModelError, match=r"backbone.name: big has 100 MB, and 100 may travel .* absolute path"):
        sent_with(settings, "")
    settings["backbone"]["name"] = "./none"
    with pytest.raises(ModelError, match=r"backbone: ./none: no such folder here; give a folder that exists"):
        sent_with(settings, "")
    settings["backbone"]["name"] = "someone/a-model"
    assert sent_with(settings, "experiment.yaml")["backbone"]["name"] == "someone/a-model"


def test_files_of_a_method_are_refused_before_submission(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "old.safetensors").touch()
    method = {"name": "mine", "peft": {"kind": "attempt", "sources": "prompts/old.safetensors"}}
    with pytest.raises(ConfigError, match="method.peft.sources: prompts/old.safetensors is a file of this machine"):
        sent_with(make_tiny(method), "")


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("Traceback\nModuleNotFoundError: No module named 'torch'", "the cluster's Python has no library `torch`"),
        ("/usr/bin/python: No module named fibec_ray", "has no fibec_ray; submit without --installed"),
        ("sh: 1: python: not found", "the cluster has no command `python`"),
        ("No module named 'torch'\nfibec-ray: data.path: none", "failed: data.path: none"),
    ],
)
def test_what_the_clusters_python_lacks_is_said(log: str, says: str) -> None:
    with pytest.raises(JobFailed, match=says):
        refuse_failure(job("a", "FAILED"), log)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("Package size (612.00MiB) exceeds the maximum size of 512.00MiB. You can exclude large files using the "
         "'excludes' option to the runtime_env", "larger than Ray takes along"),
        ("ValueError: Job with submission_id a already exists. Please use a different submission_id.",
         "choose another --name"),
        ("Job supervisor actor failed to start within 900 seconds. This timeout can be configured by setting the "
         "environment variable RAY_JOB_START_TIMEOUT_SECONDS.", "did not start in time"),
        ("runtime_env setup failed: disk full", r"check the free disk of its nodes \(disk full\)"),
        ("Ray version 1.2.3 is running on the cluster. Please", "the cluster runs Ray 1.2.3, which has no jobs"),
        ("something else", "^something else$"),
    ],
)  # fmt: skip
def test_messages_of_ray_are_in_our_words(message: str, says: str) -> None:
    found = in_our_words(message)
    assert re.search(says, found) and not re.search("excludes|submission_id|RAY_JOB|runtime_env", found)
