"""Facts about a batch that the host finds in advance: which masks have padding, and where the answer tokens are.

Reading a value back from a GPU waits for all work queued on it. So these facts are found while the batch is still in
host memory, and travel with it.

Shapes: B samples, k rows of a sample, S positions of a row, T of a target, R answer tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fibec_ray.responses import ResponseTokens, at_labels, locate

NO_LABEL = -100
"""Label of padding in tasks that label each token."""
MASKS = ("attention_mask", "target_mask")


class BatchFacts(NamedTuple):
    """Facts about one batch. Found once, on the host."""

    padded: frozenset[str]
    """the masks, by input name, that have a 0"""
    answers: ResponseTokens | None
    """tags, targets, or response tokens, with `sample` counting rows (k B); None where no token is an answer"""

    def to(self, device: torch.device) -> BatchFacts:
        """The same facts with their tensors on another torch device."""
        return BatchFacts(self.padded, None if self.answers is None else self.answers.to(device))


def join_facts(facts: Sequence[BatchFacts], rows: Sequence[int], lengths: Mapping[str, Sequence[int]]) -> BatchFacts:
    """Facts of several batches joined into one, with rows padded to the longest.

    rows: k B of each. lengths: positions of each batch's masks, by input name.
    """
    padded = {name for each in facts for name in each.padded}
    padded |= {name for name, found in lengths.items() if len(set(found)) > 1}
    answers = [each.answers for each in facts]
    if any(each is None for each in answers):
        return BatchFacts(frozenset(padded), None)
    firsts = [0, *accumulate(rows)][: len(rows)]
    return BatchFacts(frozenset(padded), ResponseTokens.join([each for each in answers if each is not None], firsts))


def padded_masks(inputs: Mapping[str, Tensor]) -> frozenset[str]:
    """The masks of a batch, by input name, that have a 0."""
    with unset_fake_temporarily():  # the model of a plan has fake tensors, its batches have real ones
        return frozenset(name for name in MASKS if name in inputs and not bool(inputs[name].all()))


def answers_in(inputs: Mapping[str, Tensor], labels: Tensor) -> ResponseTokens | None:
    """The answer tokens of a batch, see `BatchFacts.answers`. inputs, labels: as in `Batch`."""
    with unset_fake_temporarily():
        return _answers(inputs, labels)


def _answers(inputs: Mapping[str, Tensor], labels: Tensor) -> ResponseTokens | None:
    if "target_ids" in inputs:
        return at_labels(inputs["target_ids"].masked_fill(inputs["target_mask"] == 0, NO_LABEL), NO_LABEL)
    ids, mask, at = (inputs.get(name) for name in ("input_ids", "attention_mask", "answer_at"))
    if ids is not None and labels.shape == ids.shape and not labels.is_floating_point():
        return at_labels(labels, NO_LABEL)
    if ids is None or mask is None or at is None:
        return None
    return locate(ids.flatten(0, -2), mask.flatten(0, -2), at.flatten())
