"""What is wrong with an update that must not be averaged; asked by the server, and by devices of themselves."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fibec_ray.low_rank import rank_axis
from fibec_ray.tensors import all_finite
from fibec_ray.types import ClientUpdate

NOT_FINITE = "the update is not finite; lower local.learning_rate"


def fault_of(update: ClientUpdate, wanted: Mapping[str, Tensor]) -> str | None:
    """Why the update cannot be averaged; None if it can. wanted: the server's tensors that the round is about.

    What a method's parts send as evidence is theirs: of that it is only known that it must be finite.
    """
    if update.fault is not None:
        return update.fault
    if missing := [name for name in wanted if name not in update.delta]:
        return f"the update lacks '{missing[0]}', which this round trains"
    if extra := [name for name in update.delta if name not in wanted]:
        return f"the update has '{extra[0]}', which this round does not train"
    for name, value in update.delta.items():
        if not _fits(name, value, wanted[name], update.rank):
            found, there = (tuple(tensor.shape) for tensor in (value, wanted[name]))
            return f"the update has {found} values of type {value.dtype} for '{name}', the server {there}"
    if update.num_samples < 0:
        return f"the update counts {update.num_samples} samples"
    return None if all_finite(update.delta) and all_finite(update.evidence) else NOT_FINITE


def _fits(name: str, value: Tensor, there: Tensor, rank: int | None) -> bool:
    """A device of a lower rank than the server's has fewer rows of A and columns of B."""
    if value.dtype != there.dtype or value.dim() != there.dim():
        return False
    axis = None if rank is None else rank_axis(name)
    sizes = zip(value.shape, there.shape, strict=True)
    return all(size == full or (i == axis and size < full) for i, (size, full) in enumerate(sizes))
