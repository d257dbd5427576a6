"""The predicted memory of a process that hosts devices, against that of a real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import classes, make_tiny, named, settings_on

from fibec_ray.config.load import check
from fibec_ray.config.names import method_files
from fibec_ray.data.encoded import TextForm
from fibec_ray.learning.federation import Federation
from fibec_ray.preflight.anatomy import anatomy
from fibec_ray.preflight.live import peak_bytes
from fibec_ray.preflight.memory import actor_memory, live_bytes
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.preflight.samples import Samples
from fibec_ray.runs.simulation import cache_dir, prepare

FROM_SCRATCH = {"fipa-paper", "fedavg-full"}
TRAINER = Path(__file__).with_name("trainer.py")


def test_the_peak_counts_what_is_there_at_one_time() -> None:
    kept = torch.zeros(1000)

    def work() -> None:
        a = kept + 1  # 4000 bytes
        b = a + 1  # 8000
        del a
        c = b[:10] + 1  # 4000 + 40; a view is no new memory
        del b, c

    assert peak_bytes(work, [kept]) == 8000


def test_a_tensor_that_was_there_before_is_not_counted_through_its_views() -> None:
    kept = torch.zeros(1000)
    assert peak_bytes(lambda: kept.view(10, 100), [kept]) == 0


def minilm(method: str, batch_size: int, max_length: int, lanes: int, num_train: int, dtype: str) -> dict[str, object]:
    settings = make_tiny(method, backbone=None, rounds=1, num_devices=4, cohort_size=2)
    settings |= {
        "task": named("tasks", "synthetic"),
        "backbone": {"name": "minilm", "dtype": dtype},
        "data": {"max_length": max_length, "synthetic": {"num_train": num_train, "num_test": 64}},
        "partition": {"kind": "iid"},
        "local": {"batch_size": batch_size},
        "fleet": {"kind": "local", "lanes": lanes},
    }
    return settings


def within_a_quarter(settings: dict[str, object], folder: Path) -> None:
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    experiment = check(settings, "test")
    prepared = prepare(experiment, folder)
    command = [sys.executable, str(TRAINER), str(folder / "settings.yaml"), str(folder), str(cache_dir())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split()[-1])
    job = experiment.job(prepared.answers(experiment.task))
    samples = Samples.of(Federation.load(folder / "data"))
    lanes = experiment.fleet.known_lanes or 1
    predicted = actor_memory(
        Rehearsal(job, anatomy(job, TextForm())), samples, lanes, on_ray=False, on_gpu=False
    ).private
    print(f"predicted {predicted / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB")
    assert predicted == pytest.approx(measured, rel=0.25)


def foreseen(method: str) -> list[int]:
    """Bytes of each kind of pass on a small encoder, for samples that no one has prepared."""
    settings = settings_on("encoder", method)
    experiment = check(settings, "test")
    lengths = [np.full(12, 16)] * experiment.num_devices
    job = experiment.job(classes(2, (1, 2) if settings["backbone"].get("head") in ("masked_lm", "causal_lm") else None))
    made, samples = anatomy(job, TextForm()), Samples(lengths, lengths, np.concatenate(lengths))
    return live_bytes(Rehearsal(job, made), samples, 1, made)


@pytest.mark.parametrize("method", ["fedavg", "fedpeptao"])
def test_scores_of_blocks_have_a_pass_of_their_own(method: str) -> None:
    assert len(foreseen(method)) == (2 if method == "fedavg" else 3) and min(foreseen(method)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted({path.stem for path in method_files()} - FROM_SCRATCH))
def test_the_memory_of_every_method_can_be_foreseen(method: str) -> None:
    assert min(foreseen(method)) > 0


def test_memory_of_a_process_that_trains_small_batches(tmp_path: Path) -> None:
    within_a_quarter(minilm("fedavg", 8, 48, lanes=1, num_train=64, dtype="float32"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "batch_size", "max_length", "lanes", "dtype"),
    [
        ("fedavg", 32, 64, 1, "float32"),
        ("fedavg", 8, 48, 2, "float32"),
        ("fedavg", 8, 48, 2, "bfloat16"),
        ("fibecfed", 8, 48, 2, "float32"),
    ],
)
def test_memory_at_other_settings(
    method: str, batch_size: int, max_length: int, lanes: int, dtype: str, tmp_path: Path
) -> None:
    within_a_quarter(minilm(method, batch_size, max_length, lanes, 256, dtype), tmp_path)
