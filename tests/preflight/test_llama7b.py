"""The experiments with LLaMA-7B fit the GPUs that they are for, by their plans on made-up machines."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import classes

from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import packaged
from fibec_ray.data.encoded import TextForm
from fibec_ray.errors import CapacityError
from fibec_ray.fleets.placement import Resources
from fibec_ray.preflight.anatomy import anatomy
from fibec_ray.preflight.plan import Plan, make_plan
from fibec_ray.preflight.refusal import refuse
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.preflight.room import Room
from fibec_ray.preflight.samples import Samples

GB = 10**9
EXPERIMENTS = {name: path for name, path in packaged("experiments").items() if name.startswith("llama7b-")}
ON_GPUS = sorted(EXPERIMENTS.keys() - {"llama7b-cpu"})


def planned(name: str, gpu: float, host: float, gpus: int = 1, *overrides: str) -> Plan:
    """The plan on a machine with these GPUs; GB. Random weights of the same shape need no hub."""
    config = yaml.safe_load(packaged("backbones")["llama-7b-random"].read_text())["config"]
    shape = ["backbone.name=null", "backbone.init=random", "backbone.tokenizer=minilm"]
    experiment = load_experiment(
        EXPERIMENTS[name], ["task=synthetic", f"backbone.config={json.dumps(config)}", *shape, *overrides]
    )
    job = experiment.job(classes(6, range(1, 7)))
    lengths = [np.full(270, experiment.data.max_length) for _ in range(experiment.num_devices)]
    samples = Samples(lengths, [each[:25] for each in lengths], np.concatenate(lengths)[:500])
    resources = Resources(cpus=8.0, gpus=float(gpus), memory_bytes=int(host * GB), gpu_memory=int(gpu * GB))
    room = Room(resources, 1, 500 * GB, 500 * GB, True, True)
    return make_plan(experiment, Rehearsal(job, anatomy(job, TextForm())), samples, room, 10_000, 2_000)


LANES = "fleet.lanes=4"
CASES: dict[str, tuple[Any, ...]] = {
    "24 GB": ("llama7b-24gb", 24, 32, 1, "plain"),
    "16 GB": ("llama7b-16gb", 16, 32, 1, "plain"),
    "two of 12 GB": ("llama7b-2gpus", 12, 32, 2, "spread"),
    "12 GB, quantised": ("llama7b-qlora", 12, 16, 1, "qlora", LANES),
    "8 GB, quantised": ("llama7b-qlora", 8, 16, 1, "qlora"),
    "8 GB, offloaded": ("llama7b-deepspeed", 8, 32, 1, "deepspeed"),
    "8 GB, streamed": ("llama7b-stream", 8, 16, 1, "stream"),
}
"""Experiment, GB of a GPU and of the host, GPUs, backend, overrides."""


@pytest.mark.parametrize("case", [pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_the_experiment_fits_its_gpu(case: str) -> None:
    name, gpu, host, gpus, backend, *overrides = CASES[case]
    found = planned(name, gpu, host, gpus, *overrides)
    refuse(found)
    assert found.backend_choice is not None and found.backend_choice.backend == backend
    least = {"plain": 13.5, "qlora": 4.0}.get(backend, 0.0)
    assert least * GB < found.memory.gpu_needed < gpu * GB


@pytest.mark.slow
def test_the_experiment_does_not_fit_a_smaller_gpu() -> None:
    with pytest.raises(
        CapacityError, match=r"^GPU memory: a process needs 1[45]\.\d GB of its GPU .* set backbone\.back"
    ):
        refuse(planned("llama7b-16gb", 12, 32))


@pytest.mark.parametrize("name", ON_GPUS)
def test_each_experiment_says_what_has_been_measured(name: str) -> None:
    head = [line for line in EXPERIMENTS[name].read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith(("# Measured: ", "# Not measured")) for line in head)
