"""Shows which layers FibecFed shares, and how the final norm would change them: `python -m fibec_ray.bench.last_block`.

In transformers, the last of a decoder's `hidden_states` is the state after the final norm. Layer scores read the last
block's own output instead. This command scores the layers of an untrained federation both ways.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import config_folder
from fibec_ray.errors import UserError
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.model_types import Outputs
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.types import LayerReport, Layout

SETTINGS = ("method=fibecfed", "backbone=smollm2", "num_devices=2", "cohort_size=2")


class WithNormed:
    """A model whose hidden states include the state after the final norm, as if it were one more block."""

    def __init__(self, model: Any):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, *arguments: Any, **named: Any) -> Outputs:
        """Same as the model's, with one more state."""
        return _extended(self._model.forward(*arguments, **named))

    def per_sample_grads(self, *arguments: Any, **named: Any) -> tuple[Outputs, Any]:
        """Same as the model's, with one more state."""
        out, caught = self._model.per_sample_grads(*arguments, **named)
        return _extended(out), caught


def _extended(out: Outputs) -> Outputs:
    assert out.last is not None
    return replace(out, hidden=(*out.hidden, out.last))


@dataclass(frozen=True)
class Scored:
    """Scores of the layers, and the layers that the server shares by these scores."""

    scores: Tensor
    """(L,)"""
    shared: Sequence[int]

    def line(self, states: str) -> str:
        """A row of the table."""
        last = len(self.scores) - 1
        rank = 1 + int((self.scores > self.scores[last]).sum())
        return f"| {states} | {', '.join(map(str, self.shared))} | {self.scores[last]:.3g} | {rank} of {last + 1} |"


def score(settings: Sequence[str], folder: Path, threads: int) -> dict[str, Scored]:
    """Score the layers with the blocks' own outputs, and with the state after the norm in place of the last one.

    Raises UserError for a method that scores no layers.
    """
    experiment = load_experiment(config_folder() / "quickstart.yaml", [*SETTINGS, *settings])
    sharing = experiment.method.sharing
    job = experiment.job(prepare(experiment, folder).answers(experiment.task))
    spec = WorkerSpec(job, folder, cache_dir(), FleetConfig(kind="local", lanes=1, threads=threads))
    worker = spec.worker()
    layout = worker.layout
    own: list[LayerReport] = []
    normed: list[LayerReport] = []
    for device in range(job.num_devices):
        shard = worker.data.train_shard(device)
        every = sharing.score(WithNormed(worker.model), shard, worker.rng("sensitivity", device))
        if every.sensitivity is None:
            raise UserError(f"method.sharing: {sharing.kind} scores no layers; choose a method such as fibecfed")
        *blocks, after_norm = every.sensitivity
        for reports, last in ((own, blocks[-1]), (normed, after_norm)):
            scores = replace(every, sensitivity=torch.stack([*blocks[:-1], last]))
            reports.append(LayerReport(device, shard.num_samples, scores))
    by_states = {"each block's own": own, "after the final norm": normed}
    return {states: _chosen(sharing, reports, layout) for states, reports in by_states.items()}


def _chosen(sharing: Sharing, reports: Sequence[LayerReport], layout: Layout) -> Scored:
    selection = sharing.select(reports, layout, torch.Generator())
    assert selection.scores is not None
    shared = {layer for name, layer in layout.layers.items() if name in selection.names and layer is not None}
    return Scored(selection.scores, sorted(shared))


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="python -m fibec_ray.bench.last_block", description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"default: {' '.join(SETTINGS)}")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    arguments = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        found = score(arguments.settings, Path(folder), arguments.threads)
    print("| last state | shared blocks | score of the last block | its rank |\n|---|---|---|---|")
    for states, scored in found.items():
        print(scored.line(states))
    print("\nScores of the blocks, from 0:", ", ".join(f"{each:.3g}" for each in found["each block's own"].scores))


if __name__ == "__main__":
    main()
