"""Attention masks: left out where nothing is padded, and never read back from the device that computes.

Without a mask, attention takes PyTorch's flash kernel. transformers finds out by itself whether a mask has zeros, and
whether positions restart within a row (packed sequences). Both read a value back, which waits for all work queued on a
GPU; while a CUDA graph is being captured, it builds a full mask instead. We know the answers: a mask is handed over
only if it has zeros, and rows are never packed.

Shapes: B samples, S positions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import torch

MASK_BUILDERS = ("create_causal_mask", "create_bidirectional_mask")
"""Functions of transformers that treat a missing mask as one without zeros."""
WARNING = "warn_if_padding_and_no_attention_mask"
"""transformers' method that looks for padding in the token ids"""
ARGUMENTS = {"attention_mask": "attention_mask", "decoder_attention_mask": "target_mask"}
"""A model's argument -> the input of a batch that it is made of."""

_answered: ContextVar[bool] = ContextVar("_answered", default=False)


class Masks:
    """Decides which masks a model gets. base: a transformers model. device: where it computes.

    needed: always pass masks, as prefix tuning requires: transformers counts the prefix's keys by the mask.
    """

    def __init__(self, base: Any, device: torch.device, needed: bool):
        home = sys.modules[type(base).__module__]
        self._can_miss = not needed and any(hasattr(home, name) for name in MASK_BUILDERS)
        self._ask = device.type == "cpu"  # reading a mask costs nothing there
        if self._can_miss:
            _leave_out_warning(base)
        if not self._ask:
            _install()

    def without_idle(self, arguments: dict[str, Any], padded: Collection[str]) -> dict[str, Any]:
        """The model's arguments without the masks that have no zeros. padded: see `BatchFacts`.

        All masks stay where positions are given: without a mask, transformers would take positions that repeat, as
        those of late prompts do, for several sequences in a row.
        """
        if not self._can_miss or "position_ids" in arguments:
            return arguments
        idle = [name for name, source in ARGUMENTS.items() if source not in padded]
        return {name: value for name, value in arguments.items() if name not in idle}

    @contextmanager
    def answered(self) -> Iterator[None]:
        """A block in which transformers takes our answers instead of reading masks on the device."""
        token = _answered.set(not self._ask)
        try:
            yield
        finally:
            _answered.reset(token)


def _leave_out_warning(base: Any) -> None:
    """Turn off a check of GPT-2 and others: without a mask they read token ids back, to warn if some are padding."""
    for module in base.modules():
        if hasattr(module, WARNING):
            setattr(module, WARNING, lambda *args, **options: None)


def _install() -> None:
    """Give transformers our answers, where `answered` is open. Elsewhere its functions work as before."""
    from transformers import masking_utils

    answers: dict[str, Callable[..., Any]] = {
        "find_packed_sequence_indices": _never_packed,
        "_ignore_causal_mask_sdpa": _only_without_mask,
        "_ignore_bidirectional_mask_sdpa": _only_without_mask,
    }
    for name, answer in answers.items():
        own = getattr(masking_utils, name, None)  # a release that renamed it reads the mask
        if own is not None and not hasattr(own, "__wrapped__"):
            setattr(masking_utils, name, wraps(own)(partial(answer, own)))


def _never_packed(own: Callable[..., Any], position_ids: torch.Tensor) -> Any:
    return None if _answered.get() else own(position_ids)


def _only_without_mask(own: Callable[..., Any], padding_mask: torch.Tensor | None, *args: Any, **options: Any) -> Any:
    """True where attention needs no mask of its own."""
    if _answered.get() and padding_mask is not None:
        return False
    return own(padding_mask, *args, **options)
