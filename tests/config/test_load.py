"""Every YAML under configs/ loads; overrides mean what they say; a mistake is one ConfigError that names the key."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import classes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fibec_ray.config.load import check, load_experiment, load_method
from fibec_ray.config.names import config_folder, find_config, method_files
from fibec_ray.config.reading import parse_override, read_yaml
from fibec_ray.errors import ConfigError
from fibec_ray.learning.job import Job
from fibec_ray.models.kinds import parse
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.aggregator.robust import Krum
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.runs.simulation import resolved
from fibec_ray.tasks import parse_task

CONFIGS = config_folder()
QUICKSTART = CONFIGS / "quickstart.yaml"
SWEEPS = CONFIGS / "sweeps"
"""Tested in test_sweep.py and test_paper_sweeps.py."""
EVERY_FILE = [path for path in sorted(CONFIGS.rglob("*.yaml")) if SWEEPS not in path.parents]
EXPERIMENTS = [QUICKSTART, *sorted((CONFIGS / "experiments").glob("*.yaml"))]
TASKS = sorted((CONFIGS / "tasks").glob("*.yaml"))
BACKBONES = sorted((CONFIGS / "backbones").glob("*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def quickstart(*overrides: str) -> Any:
    return load_experiment(QUICKSTART, overrides)


def refusal(*overrides: str, path: Path = QUICKSTART) -> str:
    """The message of the one ConfigError that these overrides give."""
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "Traceback" not in message and "pydantic" not in message
    return message


# --- the files that come with the package


def test_there_are_files_of_every_kind() -> None:
    assert {name_of(path).split("/")[0] for path in EVERY_FILE} == {
        "quickstart.yaml",
        "own-data.yaml",
        "backbones",
        "experiments",
        "methods",
        "tasks",
    }
    assert len(EVERY_FILE) == 1 + len(EXPERIMENTS) + len(method_files()) + len(TASKS) + len(BACKBONES)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_every_experiment_loads(path: Path) -> None:
    assert load_experiment(path).name == path.stem


@pytest.mark.parametrize("path", method_files(), ids=name_of)
def test_every_method_loads_and_is_called_like_its_file(path: Path) -> None:
    method = load_method(path)
    assert method.name == path.stem
    assert method.reference


@pytest.mark.parametrize("path", TASKS, ids=name_of)
def test_every_task_loads_and_is_called_like_its_file(path: Path) -> None:
    assert parse_task(read_yaml(path)).name == path.stem


@pytest.mark.parametrize("path", BACKBONES, ids=name_of)
def test_every_backbone_loads(path: Path) -> None:
    raw = read_yaml(path)
    config = {"image": "images", "seq2seq": "instructions-tiny"}.get(raw.get("kind") or raw.get("head"), "quickstart")
    experiment = load_experiment(find_config(config), [f"backbone={path.stem}", "method=fedavg"])
    assert parse(raw) == experiment.backbone


@pytest.mark.parametrize("path", [path for path in EVERY_FILE if path.stem != "own-data"], ids=name_of)
def test_every_file_opens_with_the_command_that_runs_it(path: Path) -> None:
    """The command is not only there: its configuration and its overrides load, and they use this very file."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and "fibec-ray run " in first
    words = shlex.split(first[first.index("fibec-ray") :], comments=True)
    experiment = load_experiment(find_config(words[2]), words[3:])
    group = path.parent.name
    if group in ("methods", "tasks"):
        assert {"methods": experiment.method, "tasks": experiment.task}[group].name == path.stem
    elif group == "backbones":
        assert experiment.backbone == parse(read_yaml(path))
    else:
        assert experiment.name == path.stem


# --- what overrides mean


def test_a_method_by_name_is_its_file() -> None:
    assert quickstart("method=fedprox").method == load_method(CONFIGS / "methods" / "fedprox.yaml")


def test_a_task_by_name_is_its_file() -> None:
    assert quickstart("task=trec").task == parse_task(read_yaml(CONFIGS / "tasks" / "trec.yaml"))


def test_a_method_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nobjective: {kind: proximal, mu: 0.5}\n")
    assert quickstart(f"method={path}").method.objective.mu == 0.5


def test_methods_beside_the_experiment_come_before_packaged_ones(tmp_path: Path) -> None:
    for folder in ("experiments", "methods"):
        (tmp_path / folder).mkdir()
    (tmp_path / "methods" / "fedavg.yaml").write_text("name: our-own\n")
    path = tmp_path / "experiments" / "mine.yaml"
    path.write_text("name: mine\nrounds: 1\nnum_devices: 2\ncohort_size: 1\ntask: synthetic\nmethod: fedavg\n")
    assert load_experiment(path).method.name == "our-own"
    assert load_experiment(path, ["method=fedprox"]).method.name == "fedprox"


def test_deep_overrides_count_in_any_order() -> None:
    pair = ["method=fibecfed", "method.sharing.fraction=0.25"]
    first, second = quickstart(*pair), quickstart(*reversed(pair))
    assert first == second
    assert first.method.sharing.fraction == 0.25
    assert first.method.mask == load_method(CONFIGS / "methods" / "fibecfed.yaml").mask


def test_a_wrapped_aggregator_takes_keys_below_it() -> None:
    """With its kind or without one, when it is the mean."""
    assert quickstart("method=fedadam", "method.aggregator.of.weights=uniform").method.aggregator.of == Mean(
        weights="uniform"
    )
    pair = ["method.aggregator.of=krum", "method.aggregator.of.num_selected=2"]
    for overrides in (pair, pair[::-1], [*pair, "method.aggregator.rate=0.01"]):
        assert quickstart("method=fedadam", *overrides).method.aggregator.of == Krum(num_selected=2)
    assert quickstart("method=fedadam").method.aggregator.of == Mean()


def test_a_part_named_by_its_kind_takes_keys_below_it() -> None:
    pair = ["method.curriculum=random", "method.curriculum.pacing=sqrt"]
    first, second = quickstart(*pair), quickstart(*reversed(pair))
    assert first == second
    curriculum = first.method.curriculum
    assert (curriculum.kind, curriculum.pacing) == ("random", "sqrt")
    assert curriculum.initial_fraction == type(curriculum)().initial_fraction  # nothing of the former part stays


def test_keys_without_a_kind_are_of_the_neutral_kind_if_it_has_them() -> None:
    assert quickstart("method=fedavg", "method.peft.r=4").method.peft == Lora(r=4)
    assert quickstart("method=fedavg", "method.aggregator.weights=uniform").method.aggregator == Mean(weights="uniform")


def test_a_partition_named_by_its_kind_takes_keys_below_it() -> None:
    partition = quickstart("partition.min_samples=2", "partition=iid").partition
    assert (partition.kind, partition.min_samples) == ("iid", 2)


def test_of_two_overrides_of_one_key_the_last_counts() -> None:
    assert quickstart("rounds=3", "rounds=4").rounds == 4


def test_overrides_change_nothing_else() -> None:
    assert quickstart("local.batch_size=2").model_copy(update={"local": quickstart().local}) == quickstart()


@pytest.mark.parametrize(
    ("text", "keys", "value"),
    [
        ("rounds=20", ["rounds"], 20),
        ("local.clip=null", ["local", "clip"], None),
        ("backbone.dropout=true", ["backbone", "dropout"], True),
        ("data.text_columns=[a, b]", ["data", "text_columns"], ["a", "b"]),
        ("data={max_length: 9}", ["data"], {"max_length": 9}),
        ("method.sharing.norm=.inf", ["method", "sharing", "norm"], float("inf")),
        ("data.path=/x=y", ["data", "path"], "/x=y"),
        ("data.path=", ["data", "path"], None),
    ],
)
def test_override_values_are_yaml(text: str, keys: list[str], value: Any) -> None:
    assert parse_override(text) == (keys, value)


def test_5e_3_is_a_number_though_yaml_reads_it_as_text() -> None:
    assert quickstart("local.learning_rate=5e-3").local.learning_rate == 0.005


# --- the resolved experiment

CHANGES = [
    [],
    ["method=fibecfed", "method.sharing.norm=.inf", "method.curriculum.pacing=exp"],
    ["method=fedprox", "partition={kind: dirichlet_quantity, alpha: 3}", "local.max_steps=3"],
    ["task=trec", "data.path=x", "data.text_columns=[text]", "method.peft={kind: lora, target_modules: [query]}"],
    ["backbone={init: random, config: {model_type: llama, rope_scaling: null}, tokenizer: minilm}", "fleet.kind=local"],
    ["method=fedadam", "method.aggregator.of={kind: krum, num_selected: 2}", "method.aggregator.tau=0.01"],
    ["task=digits", "data={}", "backbone={kind: cnn, channels: [4]}", "method=fedprox"],
    ["task=regression", "data={regression: {regions: [4]}}", "backbone={kind: mlp, hidden: []}", "method=fipa-paper"],
]


@pytest.mark.parametrize("overrides", CHANGES, ids=lambda texts: " ".join(texts)[:40] or "quickstart")
def test_resolved_is_plain_yaml_that_loads_to_an_equal_experiment(overrides: list[str], tmp_path: Path) -> None:
    experiment = quickstart(*overrides)
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(resolved(experiment), sort_keys=False))
    again = load_experiment(path)
    assert again == experiment
    assert type(again.method.curriculum) is type(experiment.method.curriculum)
    assert resolved(again) == resolved(experiment)


def test_resolved_fills_in_every_default() -> None:
    plain = resolved(quickstart("method=fedavg"))
    assert plain["method"]["peft"] == {
        "kind": "lora", "r": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": None,
        "use_rslora": False, "use_dora": False, "ranks": None, "scale_by": "global", "take_turns": False,
        "freeze_a": False,
    }  # fmt: skip
    assert plain["method"]["aggregator"] == {"kind": "mean", "weights": "samples"}
    assert plain["local"]["optimizer"] == "adamw"


def test_a_job_is_a_value_that_dumps_and_validates_to_itself() -> None:
    job = quickstart("method=fibecfed").job(classes(3, (1, 2, 3)))
    assert Job.model_validate(job.model_dump()) == job


# --- refusals: (overrides, what the line must say)

REFUSALS: dict[str, tuple[list[str], list[str]]] = {
    "misspelt key at the top": (["round=3"], ["round:", "did you mean 'rounds'?"]),
    "misspelt section": (["loca.batch_size=3"], ["loca:", "did you mean 'local'?"]),
    "misspelt key in a section": (["local.batchsize=3"], ["local.batchsize:", "did you mean 'batch_size'?"]),
    "misspelt key two sections deep": (["data.synthetic.num_trian=4"], ["num_trian:", "did you mean 'num_train'?"]),
    "misspelt key in a part": (
        ["method=fibecfed", "method.curriculum.paceing=sqrt"],
        ["method.curriculum.paceing:", "did you mean 'pacing'?"],
    ),
    "misspelt key in the partition": (["partition.alfa=1"], ["partition.alfa:", "did you mean 'alpha'?"]),
    "misspelt key in the task": (["task.label_name=[]"], ["task.label_name:", "did you mean 'label_names'?"]),
    "misspelt axis": (["method.shareing=all"], ["method.shareing:", "did you mean 'sharing'?"]),
    "a key like none": (["xyzzy=1"], ["xyzzy: no such key", "allowed:", "rounds"]),
    "a key that another kind has": (["method.curriculum={kind: all, pacing: linear}"], ["method.curriculum.pacing:"]),
    "unknown method": (["method=fibecfde"], ["method:", "did you mean 'fibecfed'?"]),
    "method like none": (["method=xyzzy"], ["method: no method is called 'xyzzy'", "allowed:", "fedavg"]),
    "unknown task": (["task=tric"], ["task:", "did you mean 'trec'?"]),
    "method file that is not there": (["method=none/such.yaml"], ["such.yaml: cannot be read", "give the path"]),
    "overlong method": ([f"method={'x' * 300}"], ["method: no method is called"]),
    "unknown kind": (["method.sharing=gall"], ["method.sharing: no such kind 'gall'", "did you mean 'gal'?"]),
    "unknown partition": (["partition=dirichlet"], ["partition: no such kind", "did you mean 'dirichlet_label'?"]),
    "part without a kind": (["method=fedavg", "method.sharing.fraction=1"], ["method.sharing: kind is missing", "gal"]),
    "a misspelt key without a kind": (
        ["method.peft.alfa=1"],
        ["method.peft.alfa: no such key", "did you mean 'alpha'"],
    ),
    "a key of other kinds, without a kind": (
        ["method=fedavg", "method.aggregator.beta=0.5"],
        ["method.aggregator: kind is missing; set it to one of: momentum, fedrpca, peptao"],
    ),
    "part that is a number": (["method.curriculum=5"], ["method.curriculum:", "a kind or a mapping", "int"]),
    "partition that is a number": (["partition=5"], ["partition:", "a kind or a mapping", "int"]),
    "partition that is a list": (["partition=[1, 2]"], ["partition:", "a kind or a mapping", "list"]),
    "partition that is nothing": (["partition="], ["partition:", "a kind or a mapping"]),
    "method that is a number": (["method=5"], ["method:", "found 5"]),
    "no rounds": (["rounds=0"], ["rounds:", "greater than or equal to 1", "found 0"]),
    "half a round": (["rounds=1.5"], ["rounds:", "integer", "found 1.5"]),
    "negative seed": (["seed=-1"], ["seed:", "found -1"]),
    "negative learning rate": (["local.learning_rate=-1"], ["local.learning_rate:", "greater than 0", "found -1"]),
    "infinite learning rate": (["local.learning_rate=.inf"], ["local.learning_rate:", "finite", "found inf"]),
    "no number at all": (["local.learning_rate=.nan"], ["local.learning_rate:", "found nan"]),
    "fraction above 1": (["method.mask.ratio=1.5"], ["method.mask.ratio:", "found 1.5"]),
    "alpha of 0": (["partition.alpha=0"], ["partition.alpha:", "greater than 0", "found 0"]),
    "norm below 1": (["method.sharing.norm=0.5"], ["method.sharing.norm:", "greater than or equal to 1"]),
    "unknown choice": (["local.optimizer=adam"], ["local.optimizer:", "'adamw' or 'sgd'", "found 'adam'"]),
    "empty name": (["name=''"], ["name:", "at least 1 character"]),
    "name too long for a folder": ([f"name={'x' * 300}"], ["name:", "at most 100 characters"]),
    "cohort > devices": (["cohort_size=21"], ["cohort_size 21", "num_devices 20", "lower it"]),
    "the model's own head on bfloat16": (
        ["backbone.head=model", "backbone.dtype=bfloat16"],
        ["backbone: head: model keeps its classifier in the base's dtype", "dtype: float32"],
    ),
    "momentum without sgd": (["local.momentum=0.9"], ["local: momentum has no effect with optimizer: adamw", "sgd"]),
    "actors counted twice": (
        ["fleet.placement=per_device", "fleet.num_actors=2"],
        ["fleet:", "num_actors has no effect with placement: per_device"],
    ),
    "revision of the packaged model": (["backbone.revision=main"], ["backbone:", "revision has an effect only"]),
    "absolute budget on bfloat16": (
        ["method=fibecfed", "backbone.dtype=bfloat16"],
        ["method.sharing: gal's budget", "method.sharing.relative=true", "backbone.dtype=float32"],
    ),
    "mask without personal layers": (
        ["method=fedavg", "method.mask=fisher_neurons"],
        ["method:", "mask 'fisher_neurons'", "sharing 'all'", "mask: none"],
    ),
    "mask where all layers are shared": (["method=fibecfed", "method.sharing.fraction=1"], ["mask", "share less"]),
    "backbones by group of devices": (
        ["backbone={small: {name: minilm}, large: llama-7b}"],
        ["backbone: a federation has one", "averages adapters entry by entry", "set method.peft.ranks"],
    ),
    "a list of backbones": (["backbone=[minilm, llama-7b]"], ["backbone: a federation has one", "method.peft.ranks"]),
    "two misspelt keys of one backbone": (
        ["backbone={nam: minilm, hed: model}"],
        ["no such key; did you mean"],
    ),
    "several GPUs of an actor for a base that uses one": (
        ["fleet={gpus_per_actor: 2}", "backbone.backend=deepspeed"],
        ["fleet.gpus_per_actor is 2, and backbone.backend deepspeed uses one GPU", "backbone.backend=spread"],
    ),
    "a part of a GPU beside a whole one": (
        ["fleet={gpus_per_actor: 1.5}"],
        ["fleet: gpus_per_actor 1.5", "whole number"],
    ),
    "a base over the several GPUs of an actor that has one": (
        ["backbone.backend=spread", "fleet={gpus_per_actor: 1}"],
        ["backbone.backend: spread", "fleet.gpus_per_actor is 1; set it to 2 or more"],
    ),
    "a network without its kind": (["backbone={hidden: [3]}"], ["backbone.hidden: no such key"]),
    "an unknown network": (["backbone={kind: mpl}"], ["backbone: no such kind 'mpl'", "did you mean 'mlp'?"]),
    "a network for text": (["backbone={kind: mlp}"], ["backbone mlp takes numbers", "task synthetic is text"]),
    "topics of numbers": (
        ["task=digits", "data={}", "backbone={kind: mlp}", "partition=topics"],
        ["partition.kind: topics", "task digits has no text", "such as iid"],
    ),
    "users of rows that the task makes": (
        ["partition.column=user"],
        ["partition.column: task synthetic makes its own rows", "'user'", "set data.path"],
    ),
    "digits for a transformer": (["task=digits", "data={}"], ["task digits has no text", "{kind: cnn}"]),
    "full training of a bfloat16 base": (
        ["method=fedavg-full", "backbone.dtype=bfloat16"],
        ["method.peft: full trains the base itself", "backbone.dtype=float32"],
    ),
    "targets of full training": (
        ["method=fedavg-full", "method.peft.target_modules=[query]"],
        ["method.peft.target_modules: no such key"],
    ),
    "a matrix of LoRA without LoRA": (
        ["method=fedsa-lora", "method.peft=ia3"],
        ["method: sharing 'matrices' works on LoRA's matrices", "peft 'ia3' has none", "peft lora"],
    ),
    "SCAFFOLD with AdamW": (["method=scaffold"], ["method.objective: scaffold", "local.optimizer=sgd", "found adamw"]),
    "SCAFFOLD with momentum": (
        ["method=scaffold", "local.optimizer=sgd", "local.momentum=0.5"],
        ["method.objective: scaffold", "local.momentum=0", "found 0.5"],
    ),
    "pooled data that are shared": (
        ["method=fibecfed-no-curriculum", "method.mask=none", "method.pooled=true"],
        ["method: pooled: true puts all data in one place", "sharing 'gal'", "leave it out, or set pooled: false"],
    ),
    "pooled data with a curriculum": (["method=slw", "method.pooled=true"], ["method:", "curriculum 'length_warmup'"]),
    "weights of a mean over one": (
        ["method=centralised", "method.aggregator={kind: mean, weights: uniform}"],
        ["method:", "aggregator 'mean' as it is set"],
    ),
    "pooled data with a device's steps": (
        ["method=centralised", "local.max_steps=3"],
        ["local.max_steps 3", "method.pooled takes as many as a whole cohort", "leave out one of them"],
    ),
    "a warm-up that starts at its end": (
        ["method=slw", "method.curriculum.start=48"],
        ["method.curriculum: start 48 leaves nothing to warm up", "at most 48 tokens", "lower start"],
    ),
    "half of FedDyn": (["method=feddyn", "method.aggregator=mean"], ["method:", "set both", "or neither"]),
    "other half of FedDyn": (["method=feddyn", "method.objective=plain"], ["method:", "set both", "or neither"]),
    "two alphas of FedDyn": (
        ["method=feddyn", "method.objective.alpha=0.1"],
        ["objective.alpha 0.1 and aggregator.alpha 0.01", "make them equal"],
    ),
    "cohort too small for Krum": (
        ["method=krum", "method.aggregator.num_byzantine=2"],
        ["method.aggregator: krum with these settings needs a cohort_size of at least 7", "found 5; raise cohort_size"],
    ),
    "trimming nobody": (
        ["method=trimmed-mean", "cohort_size=4"],
        ["method.aggregator: trimmed_mean with these settings needs a cohort_size of at least 5", "found 4"],
    ),
    "misspelt key of a wrapped aggregator": (
        ["method=fedadam", "method.aggregator.of.weight=uniform"],
        ["method.aggregator.of.weight:", "did you mean 'weights'?"],
    ),
    "misspelt key of a wrapped aggregator that is named": (
        ["method=fedadam", "method.aggregator.of=krum", "method.aggregator.of.num_byzantin=0"],
        ["method.aggregator.of.num_byzantin:", "did you mean 'num_byzantine'?"],
    ),
    "a wrapped aggregator without its kind": (
        ["method=fedadam", "method.aggregator.of.num_selected=2"],
        ["method.aggregator.of: kind is missing; set it to one of: krum"],
    ),
    "unknown wrapped aggregator": (["method=fedadam", "method.aggregator.of=medain"], ["did you mean 'median'?"]),
    "a server optimiser below another": (["method=fedadam", "method.aggregator.of=yogi"], ["no such kind 'yogi'"]),
    "FedDyn's server below another": (["method=fedadam", "method.aggregator.of=feddyn"], ["no such kind 'feddyn'"]),
    "Nesterov without momentum": (
        ["method=fedavgm", "method.aggregator.beta=0", "method.aggregator.nesterov=true"],
        ["method.aggregator:", "nesterov has an effect only with beta"],
    ),
    "config without init random": (["backbone.config={model_type: bert}"], ["backbone:", "init: random"]),
    "override without =": (["rounds"], ["'rounds': expected key=value", "rounds=20"]),
    "override without key": (["=3"], ["'=3': expected key=value"]),
    "override with an empty key": (["local..clip=3"], ["expected key=value"]),
    "override that is not YAML": (["rounds=[1"], ["'rounds=[1': the value is not YAML"]),
    "a date that no calendar has": (["name=2024-99-99"], ["the value is not YAML", "month"]),
    "a tag that its value does not fit": (["name=!!float abc"], ["the value is not YAML"]),
    "brackets without end": ([f"name={'[' * 5000}"], ["the value is not YAML"]),
    "key below a scalar": (["rounds.x=1"], ["rounds.x: rounds is 12 and has no keys below it"]),
    "key below a text": (["name.first=1"], ["name.first: name is 'quickstart' and has no keys below it"]),
    "section without a value": (["evaluation="], ["evaluation:", "found None"]),
    "keys that are numbers": (["evaluation={1: 2}"], ["evaluation.1:", "string"]),
    "tasks that contradict themselves": (["task.verbaliser=[a, b]"], ["task:", "verbaliser has 2 words for 6"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_one_line(case: str) -> None:
    overrides, says = REFUSALS[case]
    message = refusal(*overrides)
    for words in says:
        assert words in message


def test_an_absolute_budget_on_bfloat16_is_fine_once_relative() -> None:
    experiment = quickstart("method=fibecfed", "backbone.dtype=bfloat16", "method.sharing.relative=true")
    assert experiment.method.sharing.relative


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert f"{path}: cannot be read (No such file or directory)" in refusal(path=path)
    assert "cannot be read" in refusal(path=tmp_path)  # a folder


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"rounds: [1\n", "not YAML"),
        (b"\xff\xfe\xff", "not YAML"),
        (b"a: 2024-99-99\n", "not YAML"),
        (b"- 1\n", "expected keys and values, found list"),
        (b"", "expected keys and values, found NoneType"),
        (b"just words\n", "expected keys and values, found str"),
    ],
)
def test_a_file_that_holds_no_keys(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    message = refusal(path=path)
    assert message.startswith(f"{path}: ") and says in message


@pytest.mark.parametrize("key", ["name", "rounds", "num_devices", "cohort_size", "task"])
def test_a_key_without_default_must_be_there(key: str, tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    content = {k: v for k, v in yaml.safe_load(QUICKSTART.read_text()).items() if k != key}
    path.write_text(yaml.safe_dump(content))
    assert refusal(path=path).startswith(f"{path}: {key}: is missing; set it")


def test_the_line_names_the_file_with_the_mistake(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nobjektive: proximal\n")
    with pytest.raises(ConfigError, match="objektive: no such key; did you mean 'objective'") as caught:
        load_method(path)
    assert str(path) in str(caught.value)


def test_an_unknown_key_is_named_before_the_key_that_it_pooled_cohort(tmp_path: Path) -> None:
    """`round: 3` is an unknown key and a missing one; the unknown one says what happened."""
    content = yaml.safe_load(QUICKSTART.read_text())
    content["round"] = content.pop("rounds")
    with pytest.raises(ConfigError, match="round: no such key; did you mean 'rounds'"):
        check(content, "x")


# --- whatever is written, the answer is an Experiment or a ConfigError

KEYS = st.sampled_from(
    ["name", "seed", "rounds", "cohort_size", "task", "method", "data", "partition", "backbone", "local", "fleet",
     "sharing", "curriculum", "mask", "peft", "objective", "kind", "alpha", "config", "norm", "dtype", "x", ""]
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10)
    | st.floats()
    | st.sampled_from(["", "gal", "iid", "fisher", "fedavg", "trec", "fisher_neurons", "bfloat16", "model_type", "\n"])
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(0, 2), inner, max_size=4),
    max_leaves=8,
)
BOUNDED = settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@BOUNDED
@given(changes=st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_values_give_an_experiment_or_a_config_error(changes: dict[str, Any]) -> None:
    base = yaml.safe_load(QUICKSTART.read_text()) | {"task": read_yaml(CONFIGS / "tasks" / "synthetic.yaml")}
    base["method"] = read_yaml(CONFIGS / "methods" / "fibecfed.yaml")
    try:
        experiment = check(base | changes, "generated")
    except ConfigError as error:
        assert str(error)
    else:
        assert check(resolved(experiment), "again") == experiment


@BOUNDED
@given(
    overrides=st.lists(
        st.builds(
            lambda keys, value: f"{'.'.join(keys)}={value}",
            st.lists(KEYS, min_size=1, max_size=3),
            st.text(max_size=8) | VALUES.map(lambda value: yaml.safe_dump(value, allow_unicode=True)),
        )
        | st.text(max_size=8),
        max_size=4,
    )
)
def test_any_overrides_give_an_experiment_or_a_config_error(overrides: list[str]) -> None:
    try:
        load_experiment(QUICKSTART, overrides)
    except ConfigError as error:
        assert str(error)
