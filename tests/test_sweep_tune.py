"""Sweeps that tune settings first: what is chosen, what is kept, and which mistakes are refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fibec_ray as package
from fibec_ray.analysis.comparison import compare
from fibec_ray.analysis.settings import Choices, settings_of
from fibec_ray.cli.main import main
from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import ConfigError, RunDirError, RunError
from fibec_ray.roundlog.schema import ROUNDS
from fibec_ray.roundlog.writer import RoundLog
from fibec_ray.sweeps.load import load_sweep, load_sweeps
from fibec_ray.sweeps.run import refuse_failures, refuse_missing_data, run_sweep
from fibec_ray.sweeps.tune import tuned_table

RATE = "local.learning_rate"
TUNE = {"values": {RATE: ["1e-1", "1e-3", "1e-2"]}, "seed": 100}
BASE = {
    "config": "tiny.yaml",
    "seeds": [0],
    "reference": "fedavg",
    "variants": {"fedavg": ["method=fedavg"], "fipa": ["method=fipa"]},
    "tune": TUNE,
}

STAND_IN = """
import json, pathlib, shutil, sys, yaml
_, config, _, out, _ = sys.argv[1:]
out, here = pathlib.Path(out), pathlib.Path(__file__).parent
settings = yaml.safe_load(open(config))
with (here / "order.txt").open("a") as file:
    file.write(f"{out.parent.name} {out.name}\\n")
log = here / f"{settings['method']['name']} {settings['local']['learning_rate']}"
if not log.exists():
    sys.exit("fibec-ray: it broke")
shutil.copytree(log / "rounds", out / "rounds")
shutil.copy(config, out / "config.yaml")
(out / "summary.json").write_text('{"status": "finished"}')
"""
"""Started like `fibec-ray run`. Leaves a finished run with the scores of its method and learning rate, or fails."""


@pytest.fixture
def write(tmp_path: Path, tiny_settings: Any) -> Callable[..., Path]:
    """write(tune=...): a sweep file beside a tiny experiment."""

    def written(name: str = "sweep-file.yaml", **changes: Any) -> Path:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings("fedavg", rounds=1)))
        (tmp_path / name).write_text(yaml.safe_dump(BASE | changes, sort_keys=False))
        return tmp_path / name

    return written


@pytest.fixture
def scored(tmp_path: Path) -> Callable[..., list[str]]:
    """scored({("fedavg", 0.01): [0.5]}): a program that leaves runs with these evaluations; others fail."""

    def made(scores: dict[tuple[str, float], list[float]], loss: float = 1.0) -> list[str]:
        for (method, rate), accuracies in scores.items():
            log = RoundLog(tmp_path / f"{method} {rate}", dict.fromkeys(("run_id", "seed", "git_commit", "config"), ""))
            for number, accuracy in enumerate(accuracies):
                empty = {column.name: None if column.nullable else 0 for column in ROUNDS}
                own = {"round": number, "personal_accuracy": accuracy, "personal_loss": loss if rate == 0.1 else 1.0}
                log.append(empty | own, [], [])
        (tmp_path / "stand_in.py").write_text(STAND_IN)
        return [sys.executable, str(tmp_path / "stand_in.py")]

    return made


def order(folder: Path) -> list[str]:
    """The runs that were started, in order, since the last call."""
    path = folder / "order.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


ALL = {
    ("fedavg", 0.001): [0.4], ("fedavg", 0.01): [0.9, 0.5, 0.6, 0.7], ("fedavg", 0.1): [0.2],
    ("fipa", 0.001): [0.3], ("fipa", 0.01): [0.8], ("fipa", 0.1): [0.8],
}  # fmt: skip


# --- what is chosen


def test_the_value_with_the_highest_score_is_chosen_and_of_equal_ones_the_smaller(
    write: Any, scored: Any, tmp_path: Path
) -> None:
    """FedAvg's four evaluations: the mean of the last three counts, 0.6, and not the best, 0.9."""
    out, said = tmp_path / "out", list[str]()
    sweep = load_sweep(write())
    assert run_sweep(sweep, out, 1, said.append, scored(ALL)) == []
    assert order(tmp_path) == [
        f"{method}-local-learning-rate-1e-{power} seed-100" for method in ("fedavg", "fipa") for power in (3, 2, 1)
    ] + ["fedavg seed-0", "fipa seed-0"]
    found = read_yaml(out / "tuned.yaml")
    assert found["seed"] == 100 and list(found["variants"]) == ["fedavg", "fipa"]
    fedavg = found["variants"]["fedavg"]
    assert [each["values"][RATE] for each in fedavg["tried"]] == ["1e-3", "1e-2", "1e-1"]
    assert [each["score"] for each in fedavg["tried"]] == pytest.approx([0.4, 0.6, 0.2])
    assert (fedavg["chosen"], fedavg["at_edge"], fedavg["score"]) == ({RATE: "1e-2"}, [], "personal accuracy")
    assert found["variants"]["fipa"]["chosen"] == {RATE: "1e-2"}
    assert {read_yaml(out / name / "seed-0.yaml")["local"]["learning_rate"] for name in ("fedavg", "fipa")} == {0.01}
    assert f"tuned fedavg: {RATE}=1e-2 (personal accuracy 0.6000)" in said
    assert read_yaml(out / "sweep.yaml")["variants"][0]["overrides"] == ["method=fedavg", f"{RATE}=1e-2"]


def test_a_choice_at_the_edge_of_the_values_is_marked(write: Any, scored: Any, tmp_path: Path) -> None:
    sweep = load_sweep(write(tune=TUNE | {"values": {RATE: [0.001, 0.01]}}))
    run_sweep(sweep, tmp_path / "out", 1, str, scored(ALL))
    assert read_yaml(tmp_path / "out" / "tuned.yaml")["variants"]["fedavg"]["at_edge"] == [RATE]
    assert sweep.tuning
    lines = tuned_table(sweep.tuning, tmp_path / "out").splitlines()
    assert [" ".join(line.split()) for line in lines[2:6]] == [
        "| variant | score | scores of the values | chosen | note |",
        lines[3],
        f"| fedavg | personal accuracy | 0.001: 0.4000, 0.01: 0.6000 | 0.01 | edge: {RATE} |",
        f"| fipa | personal accuracy | 0.001: 0.3000, 0.01: 0.8000 | 0.01 | edge: {RATE} |",
    ]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_run_whose_loss_is_not_finite_loses(loss: float, write: Any, scored: Any, tmp_path: Path) -> None:
    run_sweep(load_sweep(write()), tmp_path / "out", 1, str, scored(ALL | {("fedavg", 0.1): [0.95]}, loss))
    fedavg = read_yaml(tmp_path / "out" / "tuned.yaml")["variants"]["fedavg"]
    assert fedavg["tried"][2]["score"] is None and fedavg["chosen"] == {RATE: "1e-2"}


def test_every_combination_of_several_keys_is_tried(write: Any, scored: Any, tmp_path: Path) -> None:
    sweep = load_sweep(write(tune=TUNE | {"values": {RATE: ["1e-2", "1e-3"], "local.optimizer": ["sgd", "adamw"]}}))
    assert sweep.tuning
    assert [one.overrides for one in sweep.tuning.candidates["fedavg"]] == [
        (f"{RATE}={rate}", f"local.optimizer={optimizer}")
        for rate in ("1e-3", "1e-2")
        for optimizer in ("sgd", "adamw")
    ]
    run_sweep(sweep, tmp_path / "out", 2, str, scored(ALL))
    fedavg = read_yaml(tmp_path / "out" / "tuned.yaml")["variants"]["fedavg"]
    assert fedavg["chosen"] == {RATE: "1e-2", "local.optimizer": "sgd"}
    assert fedavg["at_edge"] == [RATE]  # optimizers have no order


# --- variants that differ


VARIANTS = BASE["variants"] | {"again": ["method=fedavg", "local.epochs=2"], "zero-shot": ["method=zero-shot"]}  # type: ignore[operator]


def test_a_variant_takes_the_choice_of_another_has_its_own_values_or_is_not_tuned(
    write: Any, scored: Any, tmp_path: Path
) -> None:
    exceptions = {"fipa": {RATE: [0.1]}, "again": "fedavg", "zero-shot": {}}
    sweep = load_sweep(write(variants=VARIANTS, tune=TUNE | {"variants": exceptions}))
    assert run_sweep(sweep, tmp_path / "out", 1, str, scored(ALL | {("zero-shot", 0.01): [0.1]})) == []
    names = [line.split()[0] for line in order(tmp_path)]
    assert names[3:] == ["fipa-local-learning-rate-0-1", "fedavg", "fipa", "again", "zero-shot"]
    found = read_yaml(tmp_path / "out" / "tuned.yaml")["variants"]
    assert found["again"] == {"takes_choice_of": "fedavg", "chosen": {RATE: "1e-2"}}
    assert "zero-shot" not in found and found["fipa"]["at_edge"] == []
    assert read_yaml(tmp_path / "out" / "again" / "seed-0.yaml")["local"]["epochs"] == 2
    assert sweep.tuning and "| as fedavg" in tuned_table(sweep.tuning, tmp_path / "out")


def test_equal_variants_may_differ_in_how_they_are_tuned(write: Any) -> None:
    variants = {"fedavg": ["method=fedavg"], "default rate": ["method=fedavg"]}
    assert load_sweep(write(variants=variants, tune=TUNE | {"variants": {"default rate": {}}})).tuning
    with pytest.raises(ConfigError, match="are the same experiment"):
        load_sweep(write(variants=variants))


def test_a_file_that_extends_another_replaces_the_whole_section(write: Any) -> None:
    write()
    other = write("other.yaml", extends="sweep-file.yaml", tune={"values": {"local.epochs": [1, 2]}, "seed": 7})
    plan = load_sweep(other)
    assert plan.tuning and plan.tuning.runs.seeds == (7,)
    assert [one.overrides for one in plan.tuning.candidates["fipa"]] == [("local.epochs=1",), ("local.epochs=2",)]


def test_each_task_is_tuned_by_itself(write: Any) -> None:
    tasks = {"synthetic": [], "digits": ["data={max_train: 90}", "backbone={kind: cnn}"]}
    found = load_sweeps(write(tasks=tasks, tune=TUNE | {"overrides": ["name={task}-tuning"]}))
    runs = {task: plan.tuning.runs.runs for task, plan in found.items() if plan.tuning}
    assert {task: (len(each), each[0].experiment.name) for task, each in runs.items()} == {
        "synthetic": (6, "synthetic-tuning"), "digits": (6, "digits-tuning"),
    }  # fmt: skip
    assert found["synthetic"].tuning and found["synthetic"].tuning.notes == ()
    assert found["digits"].tuning and "test rows are drawn anew for each seed" in found["digits"].tuning.notes[0]


# --- what is kept


def test_a_second_time_nothing_runs_and_failed_values_are_not_tried_again(
    write: Any, scored: Any, tmp_path: Path
) -> None:
    out, path, said = tmp_path / "out", write(), list[str]()
    program = scored({key: value for key, value in ALL.items() if key != ("fedavg", 0.1)})
    assert run_sweep(load_sweep(path), out, 1, str, program) == []
    before = (out / "tuned.yaml").read_text()
    assert (
        len(order(tmp_path)) == 8 and read_yaml(out / "tuned.yaml")["variants"]["fedavg"]["tried"][2]["score"] is None
    )
    refuse_missing_data({"": load_sweep(path)}, out)
    assert run_sweep(load_sweep(path), out, 1, said.append, program) == []
    assert order(tmp_path) == [] and (out / "tuned.yaml").read_text() == before
    failed = f"fedavg {RATE}=1e-1"
    assert said[0] == f"tuning: runs that failed before are not tried again: {failed}; to try them, remove tuned.yaml"
    (out / "tuned.yaml").unlink()
    run_sweep(load_sweep(path), out, 1, str, program)
    assert [line.split()[0] for line in order(tmp_path)] == ["fedavg-local-learning-rate-1e-1"]


def test_an_interrupted_sweep_goes_on_where_it_was(write: Any, scored: Any, tmp_path: Path) -> None:
    out, program, said = tmp_path / "out", scored(ALL), list[str]()

    def interrupt(line: str) -> None:
        if line.startswith("tuning: 4/6"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(load_sweep(write()), out, 1, interrupt, program)
    assert len(order(tmp_path)) == 4 and not (out / "tuned.yaml").exists()
    assert run_sweep(load_sweep(write()), out, 1, said.append, program) == []
    assert "tuning: 6 runs (6 variants, 1 seed), 4 finished before" in said[0]
    assert [line.split()[0] for line in order(tmp_path)][-3:] == ["fipa-local-learning-rate-1e-1", "fedavg", "fipa"]


def test_tuning_runs_are_not_part_of_the_comparison(write: Any, scored: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sweep(load_sweep(write()), out, 1, str, scored(ALL))
    assert [(line.variant, line.num_seeds) for line in compare(out).lines] == [("fedavg", 1), ("fipa", 1)]
    assert [setting.name for setting in settings_of([out], Choices())] == ["synthetic"]
    assert len(compare(out / "tuning").lines) == 6


def test_other_settings_are_refused_in_a_folder_with_tuning_runs(write: Any, scored: Any, tmp_path: Path) -> None:
    out, program = tmp_path / "out", scored(ALL)
    run_sweep(load_sweep(write()), out, 1, str, program)
    before = (out / "sweep.yaml").read_text()
    with pytest.raises(RunDirError, match=r"tuning/fedavg.*holds a finished run of another experiment .*rounds is 1"):
        run_sweep(load_sweep(write(), ["rounds=2"]), out, 1, str, program)
    assert (out / "sweep.yaml").read_text() == before
    (out / "tuned.yaml").write_text("variants: [1]")
    with pytest.raises(RunDirError, match="is not a record of tuned values; move it away"):
        run_sweep(load_sweep(write()), out, 1, str, program)


def test_values_that_are_added_later_are_tried_and_a_new_choice_never_overwrites_a_run(
    write: Any, scored: Any, tmp_path: Path
) -> None:
    """As after a choice at the edge. The three runs of before are kept."""
    out, program = tmp_path / "out", scored(ALL)
    few = {"variants": {"fedavg": []}, "tune": TUNE | {"values": {RATE: ["1e-3", "1e-1"]}}}
    run_sweep(load_sweep(write(**few)), out, 1, str, program)
    assert len(order(tmp_path)) == 3
    more = load_sweep(write(**few | {"tune": TUNE}))
    with pytest.raises(
        RunDirError, match=r"fedavg/seed-0: holds a finished run .*rate is 0.001 there, 0.01 here\); .*remove"
    ):
        run_sweep(more, out, 1, str, program)
    assert order(tmp_path) == ["fedavg-local-learning-rate-1e-2 seed-100"]
    shutil.rmtree(out / "fedavg" / "seed-0")
    assert run_sweep(more, out, 1, str, program) == [] and order(tmp_path) == ["fedavg seed-0"]


def test_a_variant_without_a_value_fails_and_the_others_go_on(write: Any, scored: Any, tmp_path: Path) -> None:
    program = scored({key: value for key, value in ALL.items() if key[0] == "fedavg"})
    failures = run_sweep(load_sweep(write()), tmp_path / "out", 1, str, program)
    with pytest.raises(
        RunError, match=r"1 of 2 runs failed; fipa, seed 0: all 3 tuning runs of fipa failed \(exit code 1: it broke\)"
    ):
        refuse_failures(failures, 2)
    assert [line.num_seeds for line in compare(tmp_path / "out").lines] == [1, 0]
    order(tmp_path)
    assert run_sweep(load_sweep(write()), tmp_path / "out", 1, str, scored(ALL)) == []
    assert [line.split()[0] for line in order(tmp_path)][3:] == ["fipa"]  # after its three tuning runs


# --- some variants


def test_variants_are_picked_by_name_or_folder_and_earlier_ones_stay_in_the_table(
    write: Any, scored: Any, tmp_path: Path
) -> None:
    path, out, program = write(variants=VARIANTS | {"A, b": ["local.epochs=3"]}), tmp_path / "out", scored(ALL)
    assert [run.label for run in load_sweep(path, ["variants=a-b,fedavg"]).runs] == ["fedavg, seed 0", "A, b, seed 0"]
    run_sweep(load_sweep(path, ["variants=fipa"]), out, 1, str, program)
    assert [line.variant for line in compare(out).lines] == ["fedavg", "fipa"]  # the reference, without runs
    run_sweep(load_sweep(path, ["variants=fedavg"]), out, 1, str, program)
    assert [(line.variant, line.num_seeds) for line in compare(out).lines] == [("fedavg", 1), ("fipa", 1)]
    assert set(read_yaml(out / "tuned.yaml")["variants"]) == {"fedavg", "fipa"}
    assert read_yaml(out / "sweep.yaml")["variants"][1]["overrides"] == ["method=fipa", f"{RATE}=1e-2"]
    with pytest.raises(ConfigError, match="the sweep has no variant 'fedavk'; did you mean 'fedavg'?"):
        load_sweep(path, ["variants=fedavk"])


def test_a_picked_variant_has_the_one_tuned_whose_choice_it_takes(write: Any) -> None:
    path = write(variants=VARIANTS, tune=TUNE | {"variants": {"again": "fedavg"}})
    plan = load_sweep(path, ["variants=again"])
    assert plan.tuning and list(plan.tuning.candidates) == ["fedavg"] and len(plan.runs) == 1


def test_a_picked_variant_that_is_not_tuned_just_runs(write: Any) -> None:
    path = write(variants=VARIANTS, tune=TUNE | {"variants": {"zero-shot": {}}})
    assert load_sweep(path, ["variants=zero-shot"]).tuning is None


# --- mistakes


@pytest.mark.parametrize(
    ("tune", "overrides", "says"),
    [
        ({"value": {}}, [], "tune.value: no such key; did you mean 'values'?"),
        ({"values": {}}, [], "tune.values: dictionary should have at least 1 item"),
        ({"values": {RATE: []}}, [], f"tune.values.{RATE}: list should have at least 1 item"),
        ({"values": {RATE: 0.1}}, [], f"tune.values.{RATE}: input should be a valid list"),
        ({"values": {RATE: [0.001, "1e-3"]}}, [], f"tune.values: {RATE}: 0.001, 1e-3 has a value twice"),
        ({"values": {"local.learning_rat": [1]}}, [], "local.learning_rat: no such key; did you mean 'learning_rate'?"),
        ({"values": {RATE: [-1]}}, [], "tune: variant 'fedavg local.learning_rate=-1': "),
        ({"values": {"seed": [1]}}, [], "tune.values: seed cannot be tuned; remove it"),
        ({"values": {RATE: ["1", "+1e0"]}}, [], "has a value twice"),
        ({"seed": 0}, [], "tune.seed: 0 is also one of `seeds`"),
        ({"seed": -1}, [], "tune.seed: input should be greater than or equal to 0"),
        ({"overrides": ["rounds"]}, [], "tune.overrides: 'rounds': expected key=value"),
        ({"overrides": ["seed=3"]}, [], "tune.overrides: 'seed=3': the seeds of a sweep are under its key `seeds`"),
        ({"variants": {"fedavk": {}}}, [], "tune.variants: no variant is called 'fedavk'; did you mean 'fedavg'?"),
        ({"variants": {"fipa": "fedavk"}}, [], "'fipa' takes the choice of 'fedavk', which is not a tuned variant"),
        ({"variants": {"fipa": "fedavg", "fedavg": {}}}, [], "takes the choice of 'fedavg', which is not a tuned"),
        ({"variants": {"fipa": {RATE: []}}}, [], "list should have at least 1 item"),
        ({}, [f"{RATE}=1"], f"tune: the command line sets {RATE}, which is tuned here; remove one of the two"),
        ({}, ["lr=1"], f"tune: the command line sets {RATE}, which is tuned here; remove one of the two"),
        (
            {"overrides": ["data.eval_split=validation"]},
            [],
            "tune.overrides: fedavg local.learning_rate=1e-3: data.eval_split: has no effect, because task synthetic "
            "makes its own rows; remove it",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_it(tune: dict[str, Any], overrides: list[str], says: str, write: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tune=TUNE | tune), overrides)
    assert says in str(caught.value) and "sweep-file.yaml: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_variant_that_sets_a_tuned_key_or_takes_the_folder_of_tuning_is_refused(write: Any) -> None:
    with pytest.raises(ConfigError, match=f"tune: variant 'b' sets {RATE}, which is tuned here"):
        load_sweep(write(variants={"fedavg": [], "b": ["lr=0.1"]}))
    with pytest.raises(ConfigError, match="variant 'Tuning': tuning runs are in the folder tuning; rename the variant"):
        load_sweep(write(variants={"fedavg": [], "Tuning": ["rounds=3"]}))


TREC = {"config": "trec", "overrides": ["data.path=SETS"]}


@pytest.mark.parametrize(
    ("common", "overrides", "says"),
    [
        ([], [], "would be scored on the test rows of the sweep (split test); add data.eval_split=validation if"),
        ([], ["data.train_splits=[train, test]", "data.eval_split=validation"], "would train on the test rows"),
        (["data.test=a.csv"], [], "(data.test=a.csv); add data.test=FILE with other rows to choose values on"),
    ],
)
def test_values_are_not_chosen_on_the_test_rows_of_the_sweep(
    common: list[str], overrides: list[str], says: str, write: Any
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(config="trec", overrides=["data.path=SETS", *common], tune=TUNE | {"overrides": overrides}))
    assert f"tune.overrides: fedavg {RATE}=1e-3: would" in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize(
    ("common", "overrides"),
    [
        ([], ["data.train_splits=[train]", "data.eval_split=validation"]),
        ([], ["task.eval_split=null", "data.test_fraction=0.3"]),
        (["data.test=a.csv"], ["data.test=b.csv"]),
        ([], ["data.path=OTHER"]),
    ],
)
def test_what_the_messages_advise_is_accepted(common: list[str], overrides: list[str], write: Any) -> None:
    sweep = write(config="trec", overrides=["data.path=SETS", *common], tune=TUNE | {"overrides": overrides})
    assert load_sweep(sweep).tuning


# --- real runs


def test_a_real_sweep_tunes_and_a_rate_at_which_training_diverges_loses(write: Any, tmp_path: Path) -> None:
    out, path = tmp_path / "out", write(variants={"fedavg": []}, tune=TUNE | {"values": {RATE: ["1e-2", "1e+9"]}})
    found = package.sweep(path, out=out, progress=False, rounds=2)
    fedavg = read_yaml(out / "tuned.yaml")["variants"]["fedavg"]
    assert fedavg["chosen"] == {RATE: "1e-2"} and fedavg["tried"][1]["score"] is None
    (run,) = found.runs["fedavg"].values()
    assert (run.config["local"]["learning_rate"], run.config["seed"]) == (0.01, 0)


@pytest.mark.slow
def test_the_command_ends_with_the_table_of_choices(write: Any, tmp_path: Path, capsys: Any) -> None:
    command = ["sweep", str(write()), "--out", str(tmp_path / "out"), "--jobs", "2", "rounds=2", "variants=fedavg"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "# Sweep sweep-file" in first and "# Tuned values" in first.partition("# Sweep")[2]
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "3 finished before" in again and "1 finished before" in again
    assert again.partition("# Sweep")[2] == first.partition("# Sweep")[2]
