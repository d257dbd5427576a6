"""Safetensors files that are created empty, and whose tensors are then written in place through memory maps.

So random weights of any size need no copy in memory, and the operating system writes some to the disk while others are
drawn. The files are laid out as transformers reads them: one file, or shards with an index.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from fibec_ray.files.run_dir import write_json

SHARD_BYTES = 10**9
"""Most bytes of a file with several tensors. Files are hashed in parallel."""


class _Entry(NamedTuple):
    """A tensor in a file. start: offset in the file's data."""

    name: str
    like: Tensor
    start: int


def lay_out(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> dict[str, Tensor]:
    """Make the files and return their tensors, all zeros; writing to them writes to the files.

    tensors: dtypes and shapes by name; values are not read (meta tensors will do). shard_bytes: most bytes of a file
    with several tensors. Raises OSError if the disk is full.
    """
    shards = list(_shards(tensors, shard_bytes))
    names = [_file_name(number, len(shards)) for number in range(1, len(shards) + 1)]
    found: dict[str, Tensor] = {}
    for name, shard in zip(names, shards, strict=True):
        found |= _mapped(folder / name, shard)
    if len(shards) > 1:
        where = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    return found


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> Iterator[list[_Entry]]:
    """Wide dtypes come first, so that every tensor is aligned."""
    shard: list[_Entry] = []
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if shard and end + tensor.nbytes > shard_bytes:
            yield shard
            shard, end = [], 0
        shard.append(_Entry(name, tensor, end))
        end += tensor.nbytes
    yield shard


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _mapped(path: Path, shard: list[_Entry]) -> dict[str, Tensor]:
    header = {"__metadata__": {"format": "pt"}} | {entry.name: _described(entry) for entry in shard}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    begin = 8 + len(text)
    size = begin + sum(entry.like.nbytes for entry in shard)
    with path.open("x+b") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        _reserve(file.fileno(), size)
        memory = mmap.mmap(file.fileno(), size)
    return {entry.name: _view(memory, begin + entry.start, entry.like) for entry in shard}


def _reserve(file: int, size: int) -> None:
    """Take the disk space now: otherwise a full disk would kill the process during a write to the map."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _described(entry: _Entry) -> dict[str, object]:
    offsets = [entry.start, entry.start + entry.like.nbytes]
    return {"dtype": _word(entry.like.dtype), "shape": list(entry.like.shape), "data_offsets": offsets}


def _word(dtype: torch.dtype) -> str:
    """safetensors' name of a dtype, read from a file that it makes."""
    text = save({"x": torch.empty(0, dtype=dtype)})
    word: str = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])["x"]["dtype"]
    return word


def _view(memory: mmap.mmap, start: int, like: Tensor) -> Tensor:
    count = math.prod(like.shape)
    if count == 0:
        return torch.empty(like.shape, dtype=like.dtype)
    return torch.frombuffer(memory, dtype=like.dtype, count=count, offset=start).view(like.shape)
