"""All contenders of the benchmark do the same work: the same samples in the same order, with the same arithmetic."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import classes

from fibec_ray.bench import instruction_set, runs
from fibec_ray.bench.contenders import PACKAGE, bare, distance, ours, round_ends, saved_adapter
from fibec_ray.bench.environments import InstallError, _run, requirements
from fibec_ray.bench.figures import Figures, Refusal
from fibec_ray.bench.rivals import training
from fibec_ray.bench.rivals.training import Classifier, load_model, load_workload
from fibec_ray.bench.runs import TOLERANCE, Stand, compare
from fibec_ray.bench.speed import conditions, entrants, labelled, names, replaced, section, section_name
from fibec_ray.bench.watch import CommandError, Watched, watch
from fibec_ray.bench.workload import LENGTH, PER_DEVICE, Sizes, write_arrays, write_texts
from fibec_ray.config.load import load_experiment
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.device import DeviceWorker
from fibec_ray.learning.planning import plan_round
from fibec_ray.models.kernels import speed_up
from fibec_ray.runs.simulation import cache_dir, simulate
from fibec_ray.tensors import Tensors, add
from fibec_ray.types import Broadcast

SIZES = Sizes(num_devices=3, cohort_size=2, rounds=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_texts(SIZES, tmp_path_factory.mktemp("bench") / "workload")
    write_arrays(path)
    return path


@pytest.fixture(scope="module")
def arrays(config: Path) -> Iterator[str]:
    yield str(config.parent / "arrays")
    load_model.cache_clear()
    load_workload.cache_clear()


@pytest.fixture(scope="module")
def worker_spec(config: Path) -> WorkerSpec:
    """The engine's, on the data that the workload's arrays were made from."""
    job = load_experiment(config).job(classes(6))
    return WorkerSpec(job, config.parent / "run", cache_dir())


@pytest.fixture(scope="module")
def worker(worker_spec: WorkerSpec) -> DeviceWorker:
    return worker_spec.worker()


def test_every_sample_has_the_same_length_and_every_device_as_many(config: Path, arrays: str) -> None:
    tokens = load_workload(arrays).tokens
    assert tokens.shape == (3 * PER_DEVICE, LENGTH)
    assert (tokens[:, 0] == 101).all() and (tokens[:, -1] == 102).all()  # [CLS] and [SEP], and no padding between
    assert (tokens != 0).all() and (tokens != 100).all()  # nor an unknown word
    encoded = EncodedSet.load(config.parent / "run" / "data" / "train")
    assert encoded.tokens.tolist() == tokens.flatten().tolist()


def test_rivals_meet_the_samples_that_devices_meet(arrays: str, worker_spec: WorkerSpec, worker: DeviceWorker) -> None:
    workload, federation = load_workload(arrays), worker_spec.federation()
    assert (workload.rounds, workload.cohort_size, workload.samples_per_device) == (2, 2, 32)
    for t in range(SIZES.rounds):
        for place, device in enumerate(plan_round(worker_spec.job, t).cohort):
            shard = federation.train_shard(device)
            batches = [shard.batch(rows) for rows in worker.epochs(worker.batches(device), t, device)]
            tokens, labels = workload.data(t, place)
            assert torch.equal(torch.cat([batch.inputs["input_ids"] for batch in batches]), tokens)
            assert torch.equal(torch.cat([batch.labels for batch in batches]), labels)
            assert [len(batch.labels) for batch in batches] == [workload.batch_size] * 4


@pytest.fixture
def trained(arrays: str, worker_spec: WorkerSpec, worker: DeviceWorker) -> tuple[Tensors, Tensors]:
    """What the engine makes of one device in round 1, and the adapter that it starts from."""
    plan = plan_round(worker_spec.job, 1)
    update, _ = worker.train(plan, plan.cohort[1], Broadcast(1, worker.initial))
    assert max(float(value.abs().max()) for value in update.delta.values()) > 1e-3
    return add(update.delta, worker.initial), worker.initial


def bare_adapter(arrays: str, model: Classifier, **settings: float) -> Tensors:
    """What the bare loop makes of the same, with some settings changed."""
    workload = load_workload(arrays)
    training.load(model, workload.initial)
    training.train(model, replace(workload, settings={**workload.settings, **settings}), 1, 1)
    return training.read(model)


def test_the_bare_loop_with_our_products_ends_where_our_device_does(
    arrays: str, trained: tuple[Tensors, Tensors]
) -> None:
    model = Classifier(load_workload(arrays), "float32")
    speed_up(model, torch.device("cpu"))
    theirs, mine = bare_adapter(arrays, model), trained[0]
    assert theirs.keys() == mine.keys()
    assert max(float((theirs[name] - mine[name]).abs().max()) for name in mine) < 1e-5


def test_the_bare_loop_as_it_is_ends_near_and_with_other_settings_it_does_not(
    arrays: str, trained: tuple[Tensors, Tensors]
) -> None:
    """PyTorch's product for frozen layers sums in another order than ours, so a few entries differ."""
    mine, initial = ({name: value.numpy() for name, value in values.items()} for values in trained)
    model = load_model(arrays)

    def apart(**settings: float) -> float:
        found = bare_adapter(arrays, model, **settings)
        return distance({name: value.numpy() for name, value in found.items()}, mine, initial)

    assert apart() < TOLERANCE["float32"] / 5
    assert apart(clip=0.1) > 5 * TOLERANCE["float32"]
    assert apart(learning_rate=1.1e-3) > 10 * TOLERANCE["float32"]


def test_an_adapter_travels_as_one_array_and_comes_back() -> None:
    values = {"b": torch.arange(4.0).view(2, 2), "a": torch.tensor([9.0])}
    array = training.flat(values)
    assert array.tolist() == [9, 0, 1, 2, 3]
    back = training.unflat(array, values)
    assert all(torch.equal(back[name], values[name]) for name in values)


def test_a_distance_is_a_share_of_the_way() -> None:
    initial = {"a": np.zeros(2), "b": np.zeros((1, 1))}
    wanted = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}  # 5 from the start
    assert distance({"a": np.array([3.0, 0.5]), "b": np.array([[4.0]])}, wanted, initial) == pytest.approx(0.1)
    assert distance({"a": wanted["a"]}, wanted, initial) == np.inf
    assert distance({"a": np.array([3.0, np.nan]), "b": wanted["b"]}, wanted, initial) == np.inf


def test_a_run_says_when_its_rounds_ended(config: Path, tmp_path: Path) -> None:
    run = simulate(load_experiment(config, ["fleet={kind: local}"]), tmp_path / "run")
    ends = round_ends(run.folder)
    assert len(ends) == SIZES.rounds and ends == sorted(ends)
    assert ends[0] == pytest.approx((run.folder / "rounds" / "part-000000.parquet").stat().st_mtime)
    assert saved_adapter(run.folder / "adapter").keys() == load_workload(str(config.parent / "arrays")).initial.keys()


def test_a_command_is_measured_until_it_ends(tmp_path: Path) -> None:
    block = "import time; held = bytearray(100_000_000); time.sleep(1.5)"
    measured = watch([sys.executable, "-c", block], tmp_path, {}, limit_s=60)
    assert 100e6 < measured.peak_bytes < 200e6 and 100e6 < measured.driver_bytes < 200e6


def test_a_command_that_fails_or_hangs_says_so(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="exit code 1: .*oh dear"):
        watch([sys.executable, "-c", "raise SystemExit('oh dear')"], tmp_path, {}, limit_s=60)
    with pytest.raises(CommandError, match="exit code -9"):
        watch([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, {}, limit_s=0.6)


def test_rivals_have_our_versions_of_what_all_use() -> None:
    wanted = requirements("flower")
    assert f"torch=={torch.__version__.split('+')[0]}" in wanted and wanted[-1].startswith("flwr[simulation]")
    with pytest.raises(InstallError, match="exit code 3"):
        _run([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_rival_that_cannot_be_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FIBEC_RAY_CACHE", str(tmp_path / "file"))  # no place for an environment
    contenders, missing = entrants([])
    assert "bare-fp32" in [one.name for one in contenders] and missing.keys() == {"flower", "pfl"}
    assert missing["pfl"] == Refusal("it could not be installed")
    assert entrants(["bare-fp32"]) == ([bare("float32")], {})


def test_contenders_are_told_apart() -> None:
    assert len(set(names())) == len(names()) > 6 and {"bare-fp32", "flower", "pfl", "ours-bf16-5"} <= set(names())


def test_rows_with_the_bare_loop_s_products_say_so() -> None:
    same = [one for one in ours("float32") if "-same-" in one.name]
    assert [one.name for one in same] == ["ours-fp32-same-1", "ours-fp32-same-5"]
    command = same[1].command(Path("workload"), Path("out"))
    assert {"fleet.lanes=5", "fleet.products=torch", "backbone.dtype=float32"} <= set(command)
    found = labelled({same[0].name: [], "bare-fp32": []}, [*same, bare("float32")], {}, {same[0].name: "torch"})
    assert list(found) == ["fibec_ray, fp32 base, lanes 1, torch", "bare PyTorch loop, fp32 base"]
    own = next(one for one in ours("float32") if one.name == "ours-fp32-1")
    both = labelled(
        {one.name: [] for one in (same[0], own)}, [same[0], own], {}, dict.fromkeys((same[0].name, own.name), "torch")
    )
    assert list(both) == ["fibec_ray, fp32 base, lanes 1, torch", "fibec_ray, fp32 base, lanes 1, torch (chosen)"]


def test_restricted_instructions_reach_every_contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Mapping[str, str]]()

    def ended(command: object, folder: Path, env: Mapping[str, str], limit_s: float) -> Watched:
        seen.append(env)
        raise CommandError("enough")

    monkeypatch.setattr(runs, "watch", ended)
    for isa in (None, "avx2"):
        (tmp_path / str(isa)).mkdir()
        stand = Stand(tmp_path / str(isa), isa=isa)
        for contender in (bare("float32"), ours("float32")[0]):
            with pytest.raises(CommandError):
                stand.run(contender, tmp_path)
    limits = instruction_set.RESTRICTED["avx2"].items()
    assert [limits <= env.items() for env in seen] == [False, False, True, True]


@pytest.mark.slow
def test_restricted_instructions_are_those_that_torch_then_uses() -> None:
    assert instruction_set.described("avx2").startswith("AVX2 without bfloat16 instructions (")


def test_a_section_names_the_machine_and_its_instructions() -> None:
    text = section(None, [conditions(), "| a table |"])
    assert "cores" in text and "| a table |" in text and str(Path.home()) not in text
    assert f"## {instruction_set.here()}" in text


def test_a_new_measurement_replaces_its_own_section_and_no_other_text() -> None:
    page = "# Speed\n\n<!-- avx2 -->\nold\n<!-- end -->\n\nA remark.\n"
    assert replaced(page, "avx2", "new") == page.replace("old", "new")
    assert replaced(page, "avx2-emulated", "new") == page + "\n<!-- avx2-emulated -->\nnew\n<!-- end -->\n"


def test_an_emulation_has_a_section_of_its_own() -> None:
    names = {section_name(None), section_name("avx2"), section_name("avx512")}
    assert len(names) == 3 and "avx2-emulated" in names


def test_an_unknown_contender_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fibec_ray.bench.speed", "--only", "flowers"],
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "no contender is called 'flowers'" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_bare_loop_and_our_command_agree_and_are_timed(tmp_path: Path) -> None:
    contenders = [bare("float32"), ours("float32")[0]]
    found = compare(Stand(tmp_path), contenders, Sizes(4, 2, 3), repeats=1)
    assert all(isinstance(outcome, Figures) for (outcome,) in found.values()), found
