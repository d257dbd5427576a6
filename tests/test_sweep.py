"""Sweeps: what a file may say, which runs are made, kept or made again, and what a failure or Ctrl-C leaves behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from runs.interrupted import interrupted

from fibec_ray.checkpoints.identity import read_identity
from fibec_ray.cli.main import main
from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import packaged
from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import ConfigError, RunDirError, RunError
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.roundlog.schema import ROUNDS
from fibec_ray.roundlog.writer import RoundLog
from fibec_ray.runs.simulation import resolved, simulate
from fibec_ray.sweeps.folder import folder_of, is_finished, set_aside, write_record
from fibec_ray.sweeps.load import load_sweep, load_sweeps
from fibec_ray.sweeps.plan import SweepPlan
from fibec_ray.sweeps.read import read_sweep
from fibec_ray.sweeps.run import refuse_failures, run_sweep, time_left

TWO = {"fibecfed": ["method=fibecfed"], "fedavg": ["method=fedavg"]}
SWEEPS = {name: path for name, path in packaged("sweeps").items() if not name.startswith("paper/")}
"""Those of the paper are tested in test_paper_sweeps.py."""

STAND_IN = """
import json, pathlib, shutil, sys, time, yaml
command, config, option, out, resume = sys.argv[1:]
assert (command, option, resume) == ("run", "--out", "--resume")
out = pathlib.Path(out)
out.mkdir(parents=True)  # fails where a run is, as the program does
shutil.copy(config, out / "config.yaml")
with (out.parents[1] / "order.txt").open("a") as file:
    file.write(f"{out.parent.name} {out.name}\\n")
name = yaml.safe_load(open(config))["name"]
print("said in passing")
if name == "fails":
    sys.exit("fibec-ray: it broke")
if name == "sleeps":
    (out / "summary.json").write_text('{"status": "running"}')
    time.sleep(60)
shutil.copytree(pathlib.Path(__file__).parent / "log" / "rounds", out / "rounds")
(out / "summary.json").write_text('{"status": "finished"}')
"""
"""A program that is started like `fibec-ray run` and leaves a finished run behind, without the training."""


@pytest.fixture
def write(tmp_path: Path, tiny_settings: Any) -> Callable[..., Path]:
    """write(variants=..., seeds=...): a sweep file beside a tiny experiment; keys that are None are left out."""

    def written(**changes: Any) -> Path:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings("fedavg", rounds=1)))
        content = {"config": "tiny.yaml", "seeds": [0, 1], "reference": "fibecfed", "variants": TWO} | changes
        path = tmp_path / "tiny-sweep.yaml"
        known = {key: value for key, value in content.items() if value is not None}
        path.write_text(yaml.safe_dump(known, sort_keys=False))
        return path

    return written


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    row = {column.name: None if column.nullable else 0 for column in ROUNDS} | {"personal_accuracy": 0.5}
    RoundLog(tmp_path / "log", dict.fromkeys(("run_id", "seed", "git_commit", "config"), "")).append(row, [], [])
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return [sys.executable, str(tmp_path / "stand_in.py")]


def order(out: Path) -> list[str]:
    return (out / "order.txt").read_text().splitlines()


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# --- the file


def test_runs_are_ordered_seed_by_seed_and_are_what_their_overrides_say(write: Any, tmp_path: Path) -> None:
    deep = ["method=fibecfed", "method.curriculum.pacing=sqrt"]
    sweep = load_sweep(write(variants=TWO | {"1 pacing": {"pacing: sqrt": deep}}, overrides=["local.epochs=2"]))
    names = ["fibecfed", "fedavg", "pacing: sqrt"]
    assert [run.label for run in sweep.runs] == [f"{name}, seed {seed}" for seed in (0, 1) for name in names]
    assert [(variant.group, variant.folder) for variant in sweep.variants] == [
        ("", "fibecfed"), ("", "fedavg"), ("1 pacing", "pacing-sqrt"),
    ]  # fmt: skip
    expected = load_experiment(tmp_path / "tiny.yaml", ["local.epochs=2", *deep, "seed=1"])
    assert sweep.runs[5].experiment == expected
    assert (expected.method.curriculum.pacing, expected.local.epochs, expected.seed) == ("sqrt", 2, 1)


def test_the_command_line_beats_the_file_and_a_variant_beats_both(write: Any) -> None:
    path = write(overrides=["rounds=2", "cohort_size=2"], variants=TWO | {"longer": ["rounds=5"]})
    sweep = load_sweep(path, ["rounds=3"])
    assert [run.experiment.rounds for run in sweep.runs[:3]] == [3, 3, 5]
    assert {run.experiment.cohort_size for run in sweep.runs} == {2}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sedes": [1], "seeds": None}, "sedes: no such key; did you mean 'seeds'?"),
        ({"config": None}, "config: is missing; set it"),
        ({"config": "none.yaml"}, "none.yaml: cannot be read"),
        ({"config": "quickstrat"}, "config: no config is called 'quickstrat'; did you mean 'quickstart'?"),
        ({"seeds": []}, "seeds: list should have at least 1 item"),
        ({"seeds": [0, 0]}, "seeds: [0, 0] has a seed twice; give each once"),
        ({"seeds": ["a"]}, "seeds.0: input should be a valid integer, found 'a'"),
        ({"seeds": [-1]}, "seeds.0: input should be greater than or equal to 0, found -1"),
        ({"reference": "fibecfet"}, "reference: no variant is called 'fibecfet'; did you mean 'fibecfed'?"),
        ({"variants": {}}, "variants: dictionary should have at least 1 item"),
        ({"variants": TWO | {"x": "rounds=3"}}, "variant 'x': expected a list of key=value such as [method=fedavg]"),
        ({"variants": TWO | {"x": [{"rounds": 3}]}}, "variant 'x': expected a list of key=value"),
        ({"variants": TWO | {"x": ["rounds"]}}, "variant 'x': 'rounds': expected key=value"),
        ({"variants": TWO | {"x": ["method.pacin=1"]}}, "variant 'x': "),
        ({"variants": TWO | {"x": ["method.pacin=1"]}}, "method.pacin: no such key"),
        (
            {"variants": TWO | {"x": ["seed=3"]}},
            "variant 'x': 'seed=3': the seeds of a sweep are under its key",
        ),
        ({"overrides": ["seed=3"]}, "overrides: 'seed=3': the seeds of a sweep are under its key `seeds`"),
        ({"variants": TWO | {"group": {}}}, "group 'group' is empty"),
        ({"variants": TWO | {"FedAvg!": ["rounds=2"]}}, "'fedavg' and 'FedAvg!' would share the folder fedavg; rename"),
        ({"variants": TWO | {"group": {"fedavg": ["rounds=2"]}}}, "'fedavg' and 'fedavg' would share the folder"),
        ({"variants": TWO | {"--": ["rounds=2"]}}, "variant '--': its name needs a letter"),
        ({"variants": TWO | {"two\nlines": ["rounds=2"]}}, "expected one line of at most 100 characters"),
        ({"variants": TWO | {"again": ["method=fedavg"]}}, "'fedavg' and 'again' are the same experiment; remove one"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_it(changes: dict[str, Any], says: str, write: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(**changes))
    assert says in str(caught.value) and "tiny-sweep.yaml: " in str(caught.value)


def test_a_sweep_file_names_a_packaged_experiment(write: Any) -> None:
    sweep = load_sweep(write(config="digits"))
    assert sweep.runs[0].experiment.task.name == "digits"


def test_a_key_that_stands_twice_is_not_dropped_in_silence(write: Any) -> None:
    path = write()
    path.write_text(path.read_text() + "  fedavg: [rounds=7]\n")
    with pytest.raises(ConfigError, match=r"line \d+: 'fedavg' is there twice; rename one"):
        load_sweep(path)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_loads_and_opens_with_the_command_that_runs_it(name: str) -> None:
    words = shlex.split(SWEEPS[name].read_text(encoding="utf-8").splitlines()[0], comments=False)
    assert words[:4] == ["#", "fibec-ray", "sweep", name] and "--out" in words
    tasks = list(read_sweep(SWEEPS[name]).get("tasks", ()))
    found = load_sweeps(SWEEPS[name], [f"task={task}" for task in tasks[:1]])
    assert all(plan.runs for plan in found.values())


# --- the runner, with a stand-in for the program that it starts


def test_every_run_has_its_folder_config_and_log(write: Any, program: list[str], tmp_path: Path) -> None:
    sweep, out, said = load_sweep(write()), tmp_path / "out", list[str]()
    assert run_sweep(sweep, out, 1, said.append, program) == []
    assert order(out) == ["fibecfed seed-0", "fedavg seed-0", "fibecfed seed-1", "fedavg seed-1"]
    assert read_yaml(out / "fedavg" / "seed-1.yaml") == resolved(sweep.runs[3].experiment)
    assert (out / "fedavg" / "seed-1.log").read_text() == "said in passing\n"
    assert len(said) == 5 and said[4].startswith("4/4 fedavg, seed 1: personal 0.500, ")
    record = read_yaml(out / "sweep.yaml")
    assert (record["name"], record["reference"], record["seeds"]) == ("tiny-sweep", "fibecfed", [0, 1])
    assert record["variants"][0] == {
        "name": "fibecfed", "group": "", "folder": "fibecfed", "overrides": ["method=fibecfed"],
    }  # fmt: skip


def test_only_what_is_not_finished_is_run_again(write: Any, program: list[str], tmp_path: Path) -> None:
    sweep, out, said = load_sweep(write()), tmp_path / "out", list[str]()
    run_sweep(sweep, out, 2, said.append, program)
    (out / "order.txt").unlink()
    (out / "fedavg" / "seed-0" / "summary.json").write_text('{"status": "running"}')
    (out / "fedavg" / "seed-0" / "half.txt").write_text("left by a run that was killed")
    (out / "fibecfed" / "seed-1" / "summary.json").unlink()
    said.clear()
    run_sweep(sweep, out, 1, said.append, program)
    assert order(out) == ["fedavg seed-0", "fibecfed seed-1"]
    assert "4 runs" in said[0] and "2 finished before" in said[0]
    assert said[1].startswith("3/4 fedavg, seed 0") and said[2].startswith("4/4 fibecfed, seed 1")
    assert not (out / "fedavg" / "seed-0" / "half.txt").exists()
    assert json.loads((out / "fedavg" / "seed-0" / "summary.json").read_text())["status"] == "finished"


def test_a_sweep_that_grew_runs_only_what_is_new(write: Any, program: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sweep(load_sweep(write(seeds=[0])), out, 1, str, program)
    run_sweep(load_sweep(write(seeds=[0, 5], variants=TWO | {"g": {"new": ["rounds=2"]}})), out, 1, str, program)
    assert order(out)[2:] == ["new seed-0", "fibecfed seed-5", "fedavg seed-5", "new seed-5"]
    assert [variant["name"] for variant in read_yaml(out / "sweep.yaml")["variants"]] == ["fibecfed", "fedavg", "new"]


def test_a_run_that_fails_stops_no_other(write: Any, program: list[str], tmp_path: Path) -> None:
    sweep, said = load_sweep(write(variants={"bad": ["name=fails"]} | TWO, seeds=[0])), list[str]()
    failures = run_sweep(sweep, tmp_path / "out", 1, said.append, program)
    assert [(failure.run.label, failure.reason) for failure in failures] == [("bad, seed 0", "exit code 1: it broke")]
    assert said[1].startswith("1/3 bad, seed 0: FAILED, exit code 1: it broke (") and "seed-0.log)" in said[1]
    assert order(tmp_path / "out") == ["bad seed-0", "fibecfed seed-0", "fedavg seed-0"]
    with pytest.raises(RunError, match="1 of 3 runs failed; bad, seed 0: exit code 1: it broke; run the sweep again"):
        refuse_failures(failures, 3)
    refuse_failures([], 3)


def test_a_finished_run_of_another_experiment_is_refused_and_nothing_is_touched(
    write: Any, program: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_sweep(load_sweep(write()), out, 2, str, program)
    (out / "fibecfed" / "seed-0" / "summary.json").unlink()  # would be run again
    before = files(out)
    with pytest.raises(RunDirError) as caught:
        run_sweep(load_sweep(write(), ["local.learning_rate=0.5"]), out, 1, str, program)
    assert f"{out / 'fedavg' / 'seed-0'}: holds a finished run of another experiment" in str(caught.value)
    assert "(local.learning_rate is 0.01 there, 0.5 here); choose another --out" in str(caught.value)
    assert files(out) == before


def test_an_unfinished_run_of_another_experiment_is_refused_and_nothing_is_touched(write: Any, tmp_path: Path) -> None:
    """As after an override was edited; a setting that no result depends on may change."""
    only = {"variants": {"fedavg": ["method=fedavg"]}, "reference": "fedavg", "seeds": [0]}
    sweep, out = load_sweep(write(**only), ["rounds=2"]), tmp_path / "out"
    out.mkdir()
    write_record(sweep, out)
    (half,) = sweep.runs
    interrupted(resolved(half.experiment), folder_of(half, out), half.experiment.cohort_size + 1)
    before = files(out)
    with pytest.raises(RunDirError, match=r"seed-0: holds an unfinished run .*rounds is 2 there, 3 here.*remove"):
        run_sweep(load_sweep(write(**only), ["rounds=3"]), out, 1, str)
    assert files(out) == before
    (same,) = load_sweep(write(**only), ["rounds=2", "checkpoint.keep=1"]).runs
    assert not is_finished(same, folder_of(same, out)) and set_aside(same, folder_of(same, out)) == ""


def test_an_unfinished_run_that_cannot_be_resumed_moves_aside(write: Any, program: list[str], tmp_path: Path) -> None:
    sweep, out, said = load_sweep(write(seeds=[0])), tmp_path / "out", list[str]()
    run_sweep(sweep, out, 1, said.append, program)
    for number in ("", "-2"):
        said.clear()
        (out / "fedavg" / "seed-0" / "summary.json").write_text('{"status": "running"}')
        assert run_sweep(sweep, out, 1, said.append, program) == []
        aside = out / "fedavg" / f"seed-0-set-aside{number}"
        assert f"fedavg, seed 0 cannot be resumed and starts again; the old run is now in {aside} (" in said[0]
        assert list((aside / "rounds").iterdir())


@pytest.mark.parametrize(
    "left", [".lock", ".starting", ".driver.json", "data/.train.x1/labels.npy", ".config.yaml.1.part"]
)
def test_what_was_stopped_at_its_start_does_not_stop_a_sweep(left: str, write: Any, tmp_path: Path) -> None:
    sweep, out = load_sweep(write(seeds=[0])), tmp_path / "out"
    run = sweep.runs[0]
    path = folder_of(run, out) / left
    path.parent.mkdir(parents=True)
    path.touch()
    assert not is_finished(run, folder_of(run, out)) and set_aside(run, folder_of(run, out)) == ""


def test_a_sweep_that_was_stopped_while_it_wrote_its_record_begins_anew(
    write: Any, program: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".sweep.yaml.4711.part").write_text("name: ti")
    assert run_sweep(load_sweep(write(seeds=[0])), out, 2, str, program) == []


@pytest.mark.parametrize("inside", ["notes.txt", "fedavg/seed-0/notes.txt"])
def test_what_is_no_sweep_or_no_run_is_left_alone(inside: str, write: Any, program: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    if "/" in inside:
        run_sweep(load_sweep(write(variants={"fibecfed": ["method=fibecfed"]})), out, 1, str, program)
    (out / inside).parent.mkdir(parents=True)
    (out / inside).write_text("mine")
    before = files(out)
    with pytest.raises(RunDirError, match="does not hold a sweep|is not a run directory"):
        run_sweep(load_sweep(write()), out, 1, str, program)
    assert files(out) == before


def test_the_record_never_replaces_a_sweep_file(write: Any, program: list[str], tmp_path: Path) -> None:
    own = write().rename(tmp_path / "sweep.yaml")
    before = own.read_text()
    with pytest.raises(RunDirError, match="the sweep file is where the sweep.s record would go"):
        run_sweep(load_sweep(own), tmp_path, 1, str, program)
    with pytest.raises(RunDirError, match="is not the record of a sweep"):
        run_sweep(load_sweep(write()), tmp_path, 1, str, program)
    assert own.read_text() == before


def test_two_sweeps_do_not_share_a_folder_at_a_time(write: Any, program: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(RunDirError, match="another sweep is running here"):
        run_sweep(load_sweep(write()), out, 1, str, program)
    assert run_sweep(load_sweep(write()), out, 2, str, program) == []


def stopped_children(sweep: SweepPlan, out: Path, program: list[str], say: Callable[[str], None]) -> None:
    """Runs a sweep that is interrupted; its children are gone at once, and no new one comes."""
    last_line = [0.0]

    def saying(line: str) -> None:
        last_line[0] = time.monotonic()
        say(line)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, out, 2, saying, program)
    assert time.monotonic() - last_line[0] < 20
    assert sorted(order(out)) == ["fibecfed seed-0", "slow seed-0"]
    assert json.loads((out / "slow" / "seed-0" / "summary.json").read_text())["status"] == "running"
    config = str(out / "slow" / "seed-0.yaml")
    assert not any(config.encode() in command for command in commands())


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not (path.is_file() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)


def commands() -> Iterator[bytes]:
    """Of all processes; one that ends meanwhile has none."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield path.read_bytes()


@pytest.fixture
def listens() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where whoever started the tests had it ignored, as `command &` does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for children in /proc")
@pytest.mark.parametrize("how", ["ctrl-c", "sigterm"])
def test_an_interrupted_sweep_stops_its_children_and_keeps_what_is_finished(
    how: str, write: Any, program: list[str], tmp_path: Path, listens: None
) -> None:
    """Then the same sweep, its slow variant mended, goes on from there."""
    out, before = tmp_path / "out", signal.getsignal(signal.SIGTERM)
    variants = {"slow": ["name=sleeps"], "fibecfed": ["method=fibecfed"]}

    def interrupt(line: str) -> None:
        if line.startswith("1/"):
            wait_for(out / "slow" / "seed-0" / "summary.json")
            number = signal.SIGINT if how == "ctrl-c" else signal.SIGTERM
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
            time.sleep(5)  # the signal comes in here

    stopped_children(load_sweep(write(variants=variants, seeds=[0])), out, program, interrupt)
    assert signal.getsignal(signal.SIGTERM) == before
    mended = load_sweep(write(variants=variants | {"slow": ["rounds=2"]}, seeds=[0]))
    assert run_sweep(mended, out, 1, str, program) == []
    assert order(out)[2:] == ["slow seed-0"]


# --- the command


def test_the_command_refuses_a_misspelt_key_before_anything_runs(write: Any, tmp_path: Path, capsys: Any) -> None:
    path = write(variants=TWO | {"pacing: sqrt": ["method=fibecfed", "method.curriculum.pacin=sqrt"]})
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1 and "variant 'pacing: sqrt'" in err and "did you mean 'pacing'?" in err
    assert out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweep", "x.yaml"], "sweep: the following arguments are required: --out"),
        (["sweep", "x.yaml", "--out", "o", "--jobs", "0"], "sweep: argument --jobs: expected 1 or more, found 0"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments: list[str], says: str, capsys: Any) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_an_unfinished_run_goes_on(write: Any, tmp_path: Path) -> None:
    sweep, out, said = load_sweep(write(seeds=[0]), ["rounds=3"]), tmp_path / "out", list[str]()
    out.mkdir()
    write_record(sweep, out)
    half, whole = sweep.runs
    simulate(half.experiment, tmp_path / "calm")
    interrupted(resolved(half.experiment), folder_of(half, out), half.experiment.cohort_size + 1)
    simulate(whole.experiment, folder_of(whole, out))
    begun = read_identity(folder_of(half, out)).run_id
    assert run_sweep(sweep, out, 1, said.append) == [] and "1 finished before" in said[0]
    assert read_identity(folder_of(half, out)).run_id == begun
    assert log_digest(folder_of(half, out)) == log_digest(tmp_path / "calm")
    assert "resuming at round 2 of 3 rounds" in folder_of(half, out).with_suffix(".log").read_text()


def test_a_real_sweep_ends_with_its_table_and_a_second_time_runs_nothing(
    write: Any, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    command = ["sweep", str(write(seeds=[1])), "--out", str(out), "--jobs", "2", "evaluation.every=1"]
    assert main(command) == 0
    first = capsys.readouterr()
    table = (out / "table.md").read_text(encoding="utf-8")
    assert first.err == "" and first.out.endswith(table) and "2/2 " in first.out
    assert "| fedavg " in table and " reference |" in table
    assert (out / "table.csv").is_file() and (out / "fedavg" / "seed-1" / "adapter").is_dir()

    assert main(command) == 0
    again = capsys.readouterr().out
    assert "2 finished before" in again and "1/2" not in again and again.endswith(table)

    (out / "table.md").unlink()
    assert main(["sweep-table", str(out)]) == 0
    assert capsys.readouterr().out == table == (out / "table.md").read_text(encoding="utf-8")
    assert main(["sweep-table", str(out), "--score", "best"]) == 0
    assert "the highest evaluation of a run" in capsys.readouterr().out
    assert main(["sweep-table", str(out), "--score", "best", "--last", "2"]) == 2
    assert "--last: has no effect with --score best" in capsys.readouterr().err
    assert main(["sweep-table", str(tmp_path)]) == 2
    assert "no sweep here" in capsys.readouterr().err


def test_a_packaged_config_is_named_without_a_path(write: Any) -> None:
    variants = {"fedavg": ["method=fedavg"], "fipa": ["method=fipa"]}
    runs = load_sweep(write(config="trec", variants=variants, reference="fedavg", seeds=[0])).runs
    assert [run.experiment.name for run in runs] == ["trec", "trec"]


@pytest.mark.parametrize(
    ("seconds", "ended", "waiting", "shown"),
    [(600, 4, 6, "; about 15 min left"), (3600, 1, 9, "; about 540 min left"), (20, 1, 1, ""), (600, 4, 0, "")],
)
def test_a_line_says_how_long_the_other_runs_will_take(seconds: float, ended: int, waiting: int, shown: str) -> None:
    assert time_left(seconds, ended, waiting) == shown
