"""Counter-based randomness: every draw belongs to a place (run seed, purpose, device, round), never to a process.

Used wherever something is drawn. There is no global generator, so results do not depend on which actor does the work,
in what order, or after how many retries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Where = str | int


def seed_of(run_seed: int, *where: Where) -> int:
    """A 128-bit integer that depends on every element of the place: `seed_of(7, "cohort", round)`."""
    kinds = ("str" if isinstance(part, str) else "int" for part in where)
    text = "\x1f".join([str(run_seed), *(f"{kind}:{part}" for kind, part in zip(kinds, where, strict=True))])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(run_seed: int, *where: Where) -> torch.Generator:
    """A fresh CPU torch generator for one place."""
    return torch.Generator().manual_seed(seed_of(run_seed, *where) % (1 << 63))


def numpy_generator(run_seed: int, *where: Where) -> np.random.Generator:
    """A fresh numpy generator (Philox, counter-based) for one place."""
    return np.random.Generator(np.random.Philox(key=seed_of(run_seed, *where)))


@contextmanager
def seeded_third_party(run_seed: int, *where: Where) -> Iterator[None]:
    """Seeds torch's global generator inside the block and restores it after.

    Only for libraries that draw from the global generator and offer no argument (initialisers of PEFT, transformers).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run_seed, *where) % (1 << 63))
        yield
