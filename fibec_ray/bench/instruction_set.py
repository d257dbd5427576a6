"""The instructions that torch and its libraries use: those of the processor, or fewer by environment variables.

Speeds of products depend on them. `python -m fibec_ray.bench.instruction_set` says what this machine has. Libraries
read the variables when they are loaded, so a restricted measurement runs in a process of its own. This emulates
an older processor: caches, clock and arithmetic units stay those of the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import fibec_ray
from fibec_ray.environment import read
from fibec_ray.models.products import has_bfloat16

EMULATED = "this processor restricted by environment variables, an emulation"

RESTRICTED: dict[str, Mapping[str, str]] = {
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    },
}
"""Variables by the value of --isa: of oneDNN, of torch's own kernels, and of MKL. avx512 is without bfloat16."""


def here() -> str:
    """The instructions that this process uses, such as `AVX2 without bfloat16 instructions`."""
    import torch

    limit = read("ONEDNN_MAX_CPU_ISA")
    has = has_bfloat16() and (limit is None or "BF16" in limit.upper())
    found = f"{torch.backends.cpu.get_cpu_capability()} {'with' if has else 'without'} bfloat16 instructions"
    return found if limit is None else f"{found} ({EMULATED})"


@cache
def described(isa: str | None) -> str:
    """The instructions that processes of a benchmark use. isa: a key of RESTRICTED; None: the processor's own."""
    return here() if isa is None else run("fibec_ray.bench.instruction_set", isa).strip()


def run(module: str, isa: str | None, *arguments: str) -> str:
    """Run a module in a process with this instruction set, and return what it prints."""
    env = {**os.environ, "PYTHONPATH": str(Path(fibec_ray.__file__).parents[1]), **variables(isa)}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


def variables(isa: str | None) -> Mapping[str, str]:
    """The environment variables of an instruction set; none for the processor's own."""
    return {} if isa is None else RESTRICTED[isa]


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --isa to a benchmark's command line."""
    parser.add_argument(
        "--isa", choices=RESTRICTED, help="restrict all contenders to these instructions; default: the processor's own"
    )


if __name__ == "__main__":
    print(here())
