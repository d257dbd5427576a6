"""The sweeps of FibecFed's paper load, have the settings of a co-author's code, and run two rounds at a tiny scale."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_BERT, TINY_LLAMA
from made_sets import make_sets
from pages import ROOT
from rotation import in_turn

from fibec_ray.cli.main import main
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import check, load_experiment
from fibec_ray.config.names import packaged
from fibec_ray.data.partition import DirichletLabel
from fibec_ray.data.settings import DataConfig
from fibec_ray.method import Method
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.simulation import resolved, simulate
from fibec_ray.sweeps.load import load_sweeps
from fibec_ray.sweeps.read import read_sweep

SWEEPS = {name: path for name, path in packaged("sweeps").items() if name.startswith("paper/")}
RECORDS = sorted(ROOT.glob("docs/tuned/*.yaml"))
OF_TASKS = [name for name in SWEEPS if "tasks" in read_sweep(SWEEPS[name])]


def tasks_of(name: str) -> list[str]:
    return list(read_sweep(SWEEPS[name]).get("tasks", [""]))


def variants_of(name: str) -> dict[str, list[str]]:
    """{variant: its overrides}, without the groups."""
    found: dict[str, list[str]] = {}
    for key, value in read_sweep(SWEEPS[name])["variants"].items():
        found |= value if isinstance(value, dict) else {key: value}
    return found


def experiment_of(name: str, task: str, variant: str) -> Experiment:
    """One run of a sweep, without loading the others. task: '' for a sweep without tasks."""
    sweep = read_sweep(SWEEPS[name])
    of_task = [f"task={task}", *sweep["tasks"][task]] if task else []
    changes = [*sweep["overrides"], *of_task, *variants_of(name)[variant], f"seed={sweep['seeds'][0]}"]
    return load_experiment(Path(sweep["config"]), [change.replace("{task}", task) for change in changes])


# --- the files


@pytest.mark.parametrize(
    ("name", "task"), in_turn([(name, task) for name in SWEEPS for task in tasks_of(name)], 3, "paper sweeps load")
)
def test_every_sweep_loads(name: str, task: str) -> None:
    sweep = load_sweeps(SWEEPS[name], [f"task={task}"] if task else [])[task]
    assert sweep.table == "paper"
    last = sweep.runs[len(sweep.variants) - 1]
    assert last.experiment == experiment_of(name, task, last.variant.name)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_opens_with_the_command_that_runs_it(name: str) -> None:
    words = shlex.split(SWEEPS[name].read_text(encoding="utf-8").splitlines()[0])
    assert words[:4] == ["#", "fibec-ray", "sweep", name] and words[-2:] == ["--out", f"runs/{name}"]


TEN = ["qnli", "sst2", "cola", "mrpc", "rte", "boolq", "mpqa", "subj", "trec", "mr"]
SHORT, LONG = 128, 480


@pytest.mark.parametrize(
    ("task", "rounds", "batch", "alpha", "length"),
    [
        ("qnli", 20, 4, 5, SHORT), ("sst2", 20, 4, 5, LONG), ("cola", 100, 8, 5, LONG), ("mrpc", 50, 8, 1, LONG),
        ("rte", 100, 8, 5, LONG), ("boolq", 100, 8, 5, SHORT), ("mpqa", 100, 8, 5, LONG), ("subj", 20, 8, 5, LONG),
        ("trec", 100, 8, 1, LONG), ("mr", 100, 8, 1, LONG),
    ],
)  # fmt: skip
def test_each_task_has_the_settings_of_a_co_authors_code(
    task: str, rounds: int, batch: int, alpha: float, length: int
) -> None:
    """As its files flearn/configs/ours/TASK.json have them; LONG is our cut of its 512 tokens."""
    assert tasks_of("paper/accuracy") == TEN
    found = experiment_of("paper/accuracy", task, "fibecfed-authors")
    assert (found.task.name, found.rounds, found.local.batch_size) == (task, rounds, batch)
    assert isinstance(found.data, DataConfig) and found.data.max_length == length
    assert isinstance(found.partition, DirichletLabel)
    assert (found.partition.alpha, found.partition.size_alpha) == (alpha, 5)
    assert (found.num_devices, found.cohort_size, found.local.epochs, found.seed) == (100, 10, 2, 42)


def test_fibecfed_authors_has_the_numbers_of_a_co_authors_code(capsys: Any) -> None:
    """`fibec-ray show` prints the values that docs/fibecfed.md lists."""
    assert main(["show", "trec", "method=fibecfed-authors"]) == 0
    method = yaml.safe_load(capsys.readouterr().out)["method"]
    expected: dict[str, dict[str, Any]] = {
        "peft": {"kind": "lora", "r": 8, "alpha": 16, "dropout": 0.05},
        "curriculum": {
            "kind": "fisher", "pacing": "linear", "initial_fraction": 0.6, "full_at": 0.8, "inclusive": True,
            "shuffle": False, "reduce": "mean", "label": "observed", "dropout": True,
        },
        "sharing": {
            "kind": "gal", "fraction": 0.5, "choose": "bottom", "score_by": "norm_diff", "norm": 2, "budget": 0.5,
            "noise_per": "batch", "max_samples": 10, "score_at": "answer", "weights": "uniform",
        },
        "mask": {"kind": "product_rows", "ratio": 0.95, "momentum": 0.5, "warmup_epochs": 3},
        "aggregator": {"kind": "mean", "weights": "batches"},
    }  # fmt: skip
    assert {axis: {key: method[axis][key] for key in values} for axis, values in expected.items()} == expected
    local = experiment_of("paper/accuracy", "trec", "fibecfed-authors").local
    assert (local.optimizer, local.learning_rate, local.schedule) == ("adamw", 4e-4, "constant")
    assert (local.weight_decay, local.clip) == (0, 1)


ROBERTA_POSITIONS = 512
BASELINES = variants_of("paper/accuracy").keys()


def test_prompts_and_texts_fit_into_roberta() -> None:
    """Its table of positions has 514 rows, and the first two are never used."""
    methods = [yaml.safe_load(path.read_text()) for name, path in packaged("methods").items() if name in BASELINES]
    virtual = [Method.model_validate(method).peft.num_virtual for method in methods]
    assert max(virtual) > 0 and LONG + max(virtual) <= ROBERTA_POSITIONS


# --- two rounds of each variant, on random networks and made-up texts

ROWS = 48


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up rows of all ten tasks: FOLDER/TASK/train.parquet and so on."""
    return make_sets(TEN, ROWS, tmp_path_factory.mktemp("sets"))


def tiny(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The settings of a run at the scale of a test."""
    settings = resolved(experiment)
    causal = settings["backbone"]["head"] == "causal_lm"
    return settings | {
        "rounds": 2,
        "num_devices": 4,
        "cohort_size": 2,
        "data": {"path": str(folder / settings["task"]["name"]), "max_length": 32, "max_train": 40, "max_test": 8},
        "backbone": {
            "init": "random", "config": TINY_LLAMA if causal else TINY_BERT, "tokenizer": "minilm",
            "head": "causal_lm" if causal else "masked_lm",
        },
        "fleet": {"kind": "local"},
    }  # fmt: skip


CASES = [
    (name, tasks[at % len(tasks)], variant)
    for name in SWEEPS
    for tasks in [tasks_of(name)]
    for at, variant in enumerate(variants_of(name))
]


@pytest.mark.parametrize(("name", "task", "variant"), in_turn(CASES, 1, "paper sweeps run"))
def test_every_variant_can_be_planned_and_runs_two_rounds(
    name: str, task: str, variant: str, folder: Path, tmp_path: Path
) -> None:
    settings = tiny(experiment_of(name, task, variant), folder)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    assert main(["plan", str(tmp_path / "tiny.yaml")]) == 0
    simulate(check(settings, "test"), tmp_path / "run")
    rounds = read_rounds(tmp_path / "run").to_pylist()
    assert [row["round"] for row in rounds if row["round"] >= 0] == [0, 1]
    assert rounds[-1]["personal_accuracy"] is not None or rounds[-1]["personal_metric"] is not None


# --- the published rates


def bold_rates(task: str) -> dict[str, float]:
    """{variant: the rate in bold} of the table of tuned rates in docs/reproduction.md."""
    table = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8").partition("| method | rates |")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.partition("\n\n")[0].splitlines()]
    column = [cell.split(",")[0].lower().replace("-", "") for cell in rows[0]].index(task)
    found = {}
    for name, rates, *scores in rows[2:]:
        pairs = zip(rates.split(", "), scores[column].split(", "), strict=True)
        found[name.strip("`")] = next(float(rate) for rate, score in pairs if score.startswith("**"))
    return found


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_the_sweep_takes_the_published_rates(record: Path) -> None:
    plan = load_sweeps(SWEEPS["paper/small/accuracy"], [f"task={record.stem}", f"tuned={record}"])[record.stem]
    taken = {run.variant.name: run.experiment.local.learning_rate for run in plan.runs}
    rates = bold_rates(record.stem)
    controls = {"fibecfed-authors-top": "fibecfed-authors", "random order": "fibecfed"}
    assert plan.tuning is None and taken == rates | {name: rates[method] for name, method in controls.items()}
