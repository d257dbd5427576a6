"""The benchmark sweeps: every method on LoRA, each tuned by as many values, and all variants run at a tiny scale."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import TINY_BERT, TINY_LLAMA
from made_sets import make_sets
from rotation import in_turn

from fibec_ray.analysis.comparison import compare
from fibec_ray.analysis.settings import Choices, settings_of
from fibec_ray.config.names import packaged
from fibec_ray.config.reading import read_yaml
from fibec_ray.method import Method
from fibec_ray.runs.callbacks import Callback
from fibec_ray.sweeps.load import load_sweeps
from fibec_ray.sweeps.plan import SweepPlan
from fibec_ray.sweeps.read import read_sweep
from fibec_ray.sweeps.run import run_here

NAMES = ("benchmark", "benchmark-instructions")
RAW = {name: read_sweep(packaged("sweeps")[name]) for name in NAMES}
TASKS = list(RAW["benchmark"]["tasks"])
SETS = ("trec", "sst2", "mrpc")
ROWS = 60


def variants_of(name: str) -> dict[str, list[str]]:
    """{variant: its overrides}, without the groups."""
    found: dict[str, list[str]] = {}
    for key, value in RAW[name]["variants"].items():
        found |= value if isinstance(value, dict) else {key: value}
    return found


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up rows of the three data sets: SETS/trec/train.parquet and so on."""
    return make_sets(SETS, ROWS, tmp_path_factory.mktemp("sets"))


def tiny(name: str, sets: Path, *picks: str) -> dict[str, SweepPlan]:
    """The sweep with a random network and few rows."""
    config, head = (TINY_LLAMA, "causal_lm") if name == "benchmark-instructions" else (TINY_BERT, "mean_pool")
    dtype = "bfloat16" if head == "mean_pool" else "float32"
    backbone = {"init": "random", "config": config, "tokenizer": "minilm", "head": head, "dtype": dtype}
    data = (
        {"path": f"{sets}/{{set}}", "max_length": 16, "max_train": 40, "max_test": 12}
        if name == "benchmark"
        else {"max_length": 40, "exercises": {"num_train": 48, "num_test": 12}}
    )
    small = [f"data={data}", f"backbone={backbone}", "rounds=2", "num_devices=5", "cohort_size=5"]
    own = ["data.max_train=40", "data.max_test=12"] if name == "benchmark" else []
    return load_sweeps(packaged("sweeps")[name], [*picks, *small, *own])


def run(plan: SweepPlan, out: Path) -> list[str]:
    """Run a sweep in this process; the reasons of failures."""
    return [failure.reason for failure in run_here(plan, out, lambda line: None, lambda *_: nullcontext(Callback()))]


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_its_data_skew_and_tuning_rows(task: str, sets: Path) -> None:
    set_, _, alpha = task.partition("-alpha-")
    (plan,) = load_sweeps(
        packaged("sweeps")["benchmark"], [f"task={task}", "variants=fedavg", f"data.path={sets}/{{set}}"]
    ).values()
    first = plan.runs[0].experiment
    assert (first.task.name, first.data.path) == (set_, str(sets / set_))
    assert first.partition.model_dump()["alpha"] == {"1": 1.0, "01": 0.1}[alpha]
    assert len(plan.runs) == 3 and plan.tuning and plan.tuning.notes == ()
    tuned = plan.tuning.runs.runs[0].experiment
    assert (tuned.rounds, tuned.task.model_dump()["eval_split"]) == (10, None)


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_has_as_many_values_to_try(name: str) -> None:
    tune = RAW[name]["tune"]
    grids = [tune["values"], *(each for each in tune["variants"].values() if isinstance(each, dict) and each)]
    assert {len(values) for grid in grids for values in grid.values()} == {4}
    assert all(list(grid) == ["local.learning_rate"] for grid in grids)


def test_the_benchmark_has_every_method_on_lora() -> None:
    """Except ablations and copies of a co-author's code, privacy, and two controls of curricula."""
    named = {change.removeprefix("method=") for changes in variants_of("benchmark").values() for change in changes}
    left_out = ("fibecfed-", "fipa-", "dp-", "anti-", "random-")
    lora = {
        name
        for name, path in packaged("methods").items()
        if "lora" in Method.model_validate(read_yaml(path)).peft.kind
        and not name.startswith(left_out)
        and not name.endswith("-authors")
    }
    assert lora - named == set()


@pytest.mark.slow
def test_two_variants_are_tuned_and_ranked_in_a_common_setting(sets: Path, tmp_path: Path) -> None:
    (plan,) = tiny("benchmark", sets, "task=mrpc-alpha-01", "variants=fedavg,fedex-lora").values()
    out = tmp_path / "mrpc-alpha-01"
    assert run(plan, out) == []
    assert [(line.variant, line.num_seeds) for line in compare(out).lines] == [("fedavg", 3), ("fedex-lora", 3)]
    assert [setting.name for setting in settings_of([tmp_path], Choices())] == ["mrpc"]
    tuned = read_yaml(out / "tuned.yaml")["variants"]
    assert all(len(each["tried"]) == 4 and each["chosen"] for each in tuned.values())


CASES = [(name, variant) for name in NAMES for variant in variants_of(name)]


@pytest.mark.parametrize(("name", "variant"), in_turn(CASES, 2, "benchmark variants run"))
def test_every_variant_runs_two_rounds(name: str, variant: str, sets: Path, tmp_path: Path) -> None:
    task = ["task=trec-alpha-1"] if name == "benchmark" else []
    (plan,) = tiny(name, sets, *task, f"variants={variant}").values()
    rates = RAW[name]["tune"]["values"]["local.learning_rate"]
    assert plan.tuning is None or len(plan.tuning.runs.runs) == len(rates)
    untuned = SweepPlan(plan.path, (0,), variant, plan.variants, plan.runs[:1])
    assert run(untuned, tmp_path / "out") == []
    (line,) = compare(tmp_path / "out").lines
    assert line.number("personal") is not None or line.number("shared") is not None
