"""Runs contenders on workloads, and rejects those with a different result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load_file

from fibec_ray.bench.contenders import Adapter, Contender, Finding, Ours, bare, distance
from fibec_ray.bench.figures import UNMEASURED, Outcome, Refusal, Size, figures
from fibec_ray.bench.instruction_set import variables
from fibec_ray.bench.watch import CommandError, Watched, watch
from fibec_ray.bench.workload import Sizes, write_arrays, write_texts

LIMIT_S = 900
"""of one run; a slower one is stopped"""
TOLERANCE = {"float32": 5e-3, "bfloat16": 0.2}
"""Largest accepted distance of a contender's adapter from the bare loop's, as a share of the bare loop's update.

The first step of Adam has the sign of the gradient, whatever its size. Where a gradient is almost zero, another order
of summation flips that sign. In float32 this changed 1e-4 to 8e-4 of the update. bfloat16 rounds the backward pass to 8
bits, and two equivalent loops differ by 4 to 9 %. For comparison: other batches change the update by more than 100 %, a
learning rate 10 % higher by 10 %, no clipping by 1 %.
"""


def say(text: str) -> None:
    """Progress, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Stand:
    """Runs contenders in a scratch folder."""

    folder: Path
    versions: dict[str, str] = field(default_factory=dict)
    """version of each contender, as it reports"""
    products: dict[str, str] = field(default_factory=dict)
    """what multiplied frozen layers, of contenders that have a choice"""
    isa: str | None = None
    """instructions that contenders are restricted to (instruction_set.py)"""
    _runs: int = 0

    def workload(self, sizes: Sizes) -> Path:
        """The folder with texts and experiment; made if missing."""
        folder = self.folder / f"{sizes.num_devices}-{sizes.cohort_size}-{sizes.rounds}"
        return folder if folder.exists() else write_texts(sizes, folder).parent

    def run(self, contender: Contender, workload: Path) -> tuple[Watched, Finding]:
        """Run one contender. Raises CommandError if it fails."""
        self._runs += 1
        out = self.folder / f"run-{self._runs:03d}"
        out.mkdir()
        env = {**contender.env(out), **variables(self.isa)}
        measured = watch(contender.command(workload, out), out, env, LIMIT_S)
        try:
            found = contender.found(out)
        except OSError as error:
            raise CommandError(f"ended without a result: {error}") from error
        self.versions[contender.name] = found.version
        self.products[contender.name] = found.products
        return measured, found

    def outcome(self, contender: Contender, workload: Path, cohort_size: int, wanted: Adapter | None) -> Outcome:
        """Run one contender and check its adapter. wanted: the reference adapter; None: no check."""
        try:
            measured, found = self.run(contender, workload)
        except CommandError as error:
            say(f"{contender.name}: {error}")
            return Refusal("it failed")
        if wanted is not None:
            apart = distance(found.adapter, wanted, load_file(workload / "arrays" / "initial.safetensors"))
            say(f"{contender.name}: its update differs from the bare loop's by {apart:.1e} of its size")
            if apart > TOLERANCE[contender.dtype]:
                return Refusal(f"its update differs from the bare loop's by {apart:.1e} of its size")
        return figures(
            found.ends,
            measured.started,
            cohort_size,
            measured.peak_bytes,
            measured.driver_bytes,
        )


def compare(
    stand: Stand, contenders: Sequence[Contender], sizes: Sizes, repeats: int, natively: bool = True
) -> dict[str, list[Outcome]]:
    """Outcomes of each contender, by name. The bare loop runs first for each dtype, as the reference.

    natively: False where the bare loop is too slow in bfloat16; the reference is then its result in float32.
    """
    workload = stand.workload(sizes)
    write_arrays(workload / "experiment.yaml")
    known: dict[str, Adapter] = {}

    def reference(dtype: str) -> Adapter:
        dtype = dtype if natively else "float32"
        if dtype not in known:
            known[dtype] = stand.run(bare(dtype), workload)[1].adapter
        return known[dtype]

    wanted = {contender.dtype: reference(contender.dtype) for contender in contenders}
    found: dict[str, list[Outcome]] = {contender.name: [] for contender in contenders}
    for repeat in range(repeats):
        for contender in contenders:
            outcome = stand.outcome(contender, workload, sizes.cohort_size, wanted[contender.dtype])
            found[contender.name].append(outcome)
            say(f"repeat {repeat + 1}, {contender.name}: {outcome}")
    return found


def grow(stand: Stand, sizes: Sequence[Size]) -> dict[Size, list[Outcome]]:
    """Run fibec_ray once per size, with two measured rounds, or one where rounds are large."""
    found: dict[Size, list[Outcome]] = {}
    for size in sizes:
        rounds = UNMEASURED + (1 if size.cohort_size >= 100 else 2)
        workload = stand.workload(Sizes(size.num_devices, size.cohort_size, rounds))
        contender = Ours("ours", "ours", settings=(f"fleet.num_actors={size.num_actors}",))
        found[size] = [stand.outcome(contender, workload, size.cohort_size, None)]
        say(f"{size}: {found[size][0]}")
    return found
