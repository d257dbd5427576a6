"""The benchmark's contenders: how to start each on a workload, and how to read its results.

Each contender reports when its rounds ended, and its global adapter after the last one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

import fibec_ray
from fibec_ray.model_types import HEAD
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.callbacks import read_summary

Adapter = dict[str, NDArray[Any]]
PACKAGE = Path(fibec_ray.__file__).resolve().parent

LANES = {"float32": ("1", "5"), "bfloat16": ("1", "5", "auto")}
"""Values of `fleet.lanes` to measure; 5 is a worker's half of the cohort. In float32 on a CPU, auto is 1."""
SAME_LANES = ("1", "5")
"""Lanes that are also measured with the bare loop's products, to show what the engine itself costs."""
SHORT = {"float32": "fp32", "bfloat16": "bf16"}
LAUNCHERS = {"pfl": ["-m", "torch.distributed.run", "--nproc-per-node", "2"]}
MODULES = {"bare": "bare", "flower": "flower", "pfl": "pfl_loop"}


@dataclass(frozen=True)
class Finding:
    """What a contender leaves behind: times, adapter, version."""

    ends: list[float]
    """when each round ended, seconds since the epoch"""
    adapter: Adapter
    version: str
    products: str = ""
    """what multiplied frozen layers; '' if the contender has no choice"""


@dataclass(frozen=True)
class Ours:
    """The `fibec-ray run` command. settings: its overrides."""

    name: str
    """for --only"""
    label: str
    """for the table"""
    dtype: str = "float32"
    """of the frozen base"""
    settings: Sequence[str] = ()

    def command(self, workload: Path, out: Path) -> list[str]:
        """The command that runs it on a workload."""
        run = [sys.executable, "-m", "fibec_ray", "run", str(workload / "experiment.yaml")]
        return [*run, "--out", str(out / "run"), f"backbone.dtype={self.dtype}", *self.settings]

    def env(self, out: Path) -> Mapping[str, str]:
        """Environment variables of the command."""
        return {"PYTHONPATH": str(PACKAGE.parent)}

    def found(self, out: Path) -> Finding:
        """Read the results from the run directory."""
        run = out / "run"
        products = read_summary(run).get("products", "")
        return Finding(round_ends(run), saved_adapter(run / "adapter"), version("fibec_ray"), products)


@dataclass(frozen=True)
class Rival:
    """One of `rivals/`, run by the interpreter of its own environment."""

    name: str
    label: str
    python: Path
    kind: str
    dtype: str = "float32"

    def command(self, workload: Path, out: Path) -> list[str]:
        """The command that runs it on a workload."""
        module = f"fibec_ray.bench.rivals.{MODULES[self.kind]}"
        launcher = LAUNCHERS.get(self.kind, [])
        return [str(self.python), *launcher, "-m", module, str(workload / "arrays"), str(out), self.dtype]

    def env(self, out: Path) -> Mapping[str, str]:
        """Environment variables of the command."""
        return {"PYTHONPATH": str(_alone(out))}

    def found(self, out: Path) -> Finding:
        """Read the results that it wrote."""
        report = json.loads((out / "report.json").read_text())
        return Finding(report["ends"], load_file(out / "adapter.safetensors"), report["version"])


Contender = Ours | Rival


def bare(dtype: str) -> Rival:
    """The bare loop; also the reference for all contenders with this base dtype."""
    short = SHORT[dtype]
    return Rival(f"bare-{short}", f"bare PyTorch loop, {short} base", Path(sys.executable), "bare", dtype)


def ours(dtype: str) -> list[Ours]:
    """fibec_ray, once for each number of lanes; in float32 also with the bare loop's products."""
    short = SHORT[dtype]

    def one(lanes: str, products: str, more: str = "") -> Ours:
        settings = (f"fleet.lanes={lanes}", f"fleet.products={products}")
        return Ours(f"ours-{short}{more}-{lanes}", f"fibec_ray, {short} base, lanes {lanes}", dtype, settings)

    same = SAME_LANES if dtype == "float32" else ()
    return [*(one(lanes, "torch", "-same") for lanes in same), *(one(lanes, "auto") for lanes in LANES[dtype])]


def round_ends(run: Path) -> list[float]:
    """When each round of a run ended: the log has seconds since the start, its files have the time of day."""
    rows = [row for row in read_rounds(run).to_pylist() if row["round"] >= 0]
    began = (run / "rounds" / "part-000000.parquet").stat().st_mtime - rows[0]["wall_time_s"]
    return [began + row["wall_time_s"] for row in rows]


def saved_adapter(folder: Path) -> Adapter:
    """The saved adapter, with the names that tensors have in a run."""
    head = load_file(folder / "head.safetensors")
    return load_file(folder / "adapter_model.safetensors") | {f"{HEAD}.{name}": head[name] for name in head}


def distance(found: Adapter, wanted: Adapter, initial: Adapter) -> float:
    """|found - wanted| / |wanted - initial|; infinite if tensors are lacking or not finite."""
    if not found.keys() == wanted.keys() == initial.keys():
        return float("inf")
    apart = _norm({name: found[name] - wanted[name] for name in wanted})
    moved = _norm({name: wanted[name] - initial[name] for name in wanted})
    return apart / moved if np.isfinite(apart) else float("inf")


def _norm(values: Adapter) -> float:
    return float(np.sqrt(sum(np.square(value, dtype=np.float64).sum() for value in values.values())))


def _alone(out: Path) -> Path:
    """A folder from which only this package can be imported, and nothing that is installed next to it."""
    link = out / "path" / "fibec_ray"
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(PACKAGE)
    return link.parent
