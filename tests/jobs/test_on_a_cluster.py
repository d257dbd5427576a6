"""Jobs on a cluster that wants a token: submit, follow, fetch, report; stop and go on; failures and wrong tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_digits
from jobs import head as heads
from own_part import RULES, write_own_part

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.simulation import simulate

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[heads.Head]:
    with heads.head(tmp_path_factory.mktemp("home")) as found:
        yield found


def config(folder: Path, **changes: Any) -> tuple[str, dict[str, Any]]:
    """A small experiment, as a file and as settings."""
    settings = make_digits(**{"name": "digits", "rounds": 2, **changes})
    path = folder / "configs" / "digits.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(settings))
    return str(path), settings


def test_submit_follow_fetch_report(head: heads.Head, tmp_path: Path) -> None:
    """On actors of the cluster, with a part of the user's own, which they have from the job alone.

    The run that comes back is, bit for bit, that of one process here.
    """
    fleet = {"kind": "ray", "placement": "pooled", "num_actors": 1}
    path, settings = write_own_part(tmp_path / "configs", name="digits", fleet=fleet)
    done = head.command("submit", str(path), "--follow")
    assert done.returncode == 0, done.stderr
    assert "job digits on http://127.0.0.1" in done.stdout and "round 2: global" in done.stdout
    assert "placement pooled: 1 device actors" in done.stdout and done.stderr == ""

    fetched = tmp_path / "fetched"
    done = head.command("fetch", "digits", str(fetched))
    assert done.returncode == 0, done.stderr
    assert "without checkpoints and data, which stay on the cluster" in done.stdout
    assert (fetched / "parts" / "my_rules.py").read_text() == RULES
    here = simulate(check({**settings, "fleet": {"kind": "local"}}, "test"), tmp_path / "here")
    assert json.loads((fetched / "summary.json").read_text())["adapter_digest"] == here.adapter_digest
    assert log_digest(fetched) == log_digest(tmp_path / "here")
    assert main(["report", str(fetched)]) == 0 and (fetched / "report.html").is_file()
    listed = [line for line in head.command("jobs").stdout.splitlines() if "│" in line]
    assert len(listed) == 1 and "digits" in listed[0] and "succeeded" in listed[0], "what fetched is not listed"
    assert f"{head.environment['FIBEC_RAY_RUNS']}/digits" in listed[0], "an absolute path"


@pytest.mark.slow
def test_a_stopped_job_goes_on_under_its_name(head: heads.Head, tmp_path: Path) -> None:
    """Behind a URL: the second job may be on another machine, and has from the first what that left there."""
    path, settings = config(tmp_path, rounds=150, evaluation={"every": 150})
    out = ["--out", f"file://{tmp_path / 'bucket'}", "--name", "long"]
    assert head.command("submit", path, *out).returncode == 0
    nearby = Path(head.environment["FIBEC_RAY_RUNS"]) / ".urls"
    wait_until(lambda: rounds_in(nearby) > 2)
    refused = head.command("submit", path, *out)
    assert refused.returncode == 2 and "its job long is running; `fibec-ray stop long` it first" in refused.stderr
    stopped = head.command("stop", "long")
    assert (stopped.returncode, stopped.stdout) == (0, "long: stopped\n")
    begun = rounds_in(tmp_path / "bucket")
    assert 0 < begun < 151

    done = head.command("submit", path, *out, "--follow")
    assert done.returncode == 0, done.stderr
    assert "job long.2 on" in done.stdout and "resuming at round" in done.stdout
    fetched = tmp_path / "fetched"
    assert head.command("fetch", "long", str(fetched)).returncode == 0
    assert rounds_in(fetched) == 151
    assert log_digest(fetched) == log_digest_of(settings, tmp_path / "here")


def test_a_job_that_fails_says_why(head: heads.Head, tmp_path: Path) -> None:
    """What can only go wrong over there: data that the cluster does not have."""
    settings = make_digits(name="absent", task="sst2", data={"path": "/no/such/folder"}, backbone=None)
    settings["backbone"] = {"init": "random", "config": {"model_type": "bert", "vocab_size": 64}, "tokenizer": "minilm"}
    path = tmp_path / "absent.yaml"
    path.write_text(yaml.safe_dump(settings))
    done = head.command("submit", str(path), "--follow")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fibec-ray: job absent failed: data.path: /no/such/folder: no such file or folder")
    again = head.command("logs", "absent")
    assert again.returncode == 0 and "data.path: /no/such/folder" in again.stdout


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RAY_AUTH_TOKEN": "not-the-token-of-this-cluster-9876"}, "rejects our token; put the cluster's token"),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token, and there is none here; put the cluster's token into"),
    ],
)
def test_a_wrong_token_is_one_line(head: heads.Head, environment: dict[str, str], says: str) -> None:
    done = head.command("jobs", **environment)
    assert done.returncode == 2 and done.stdout == ""
    assert says in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_job_that_is_not_there(head: heads.Head) -> None:
    done = head.command("logs", "digitz")
    assert done.returncode == 2 and "digitz: no such job on http://127.0.0.1" in done.stderr


def rounds_in(folder: Path) -> int:
    """Rows of `rounds`, one file each while few have been written."""
    return len(list(folder.rglob("rounds/[!.]*.parquet")))


def log_digest_of(settings: dict[str, Any], folder: Path) -> str:
    simulate(check(settings, "test"), folder)
    return log_digest(folder)


def wait_until(happened: Any) -> None:
    deadline = time.monotonic() + 90
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)
