"""Joins the batches of several devices, and splits the outputs.

Shapes: B samples of a lane, k rows per sample, S tokens of the longest row, H hidden size, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.batch_facts import MASKS, BatchFacts, join_facts
from fibec_ray.model_types import NO_LABEL, Batch, Outputs


def join(batches: Sequence[Batch], pad_id: int) -> Batch:
    """Concatenate the samples of all batches, each input right-padded to its longest. pad_id: of token ids."""
    names = batches[0].inputs.keys()
    assert all(batch.inputs.keys() == names for batch in batches), "lanes have different inputs"
    pads = dict.fromkeys(names, 0) | {"input_ids": pad_id}
    inputs = {name: _padded([batch.inputs[name] for batch in batches], pads[name]) for name in names}
    return Batch(inputs, _padded([batch.labels for batch in batches], NO_LABEL), _facts(batches))


def _facts(batches: Sequence[Batch]) -> BatchFacts | None:
    """The joint batch's facts, from those of its parts; None on a CPU, where finding them later costs nothing."""
    if batches[0].labels.device.type == "cpu":
        return None
    masks = [name for name in MASKS if name in batches[0].inputs]
    lengths = {name: [batch.inputs[name].shape[-1] for batch in batches] for name in masks}
    rows = [batch.num_samples * batch.rows_each for batch in batches]
    return join_facts([batch.facts for batch in batches], rows, lengths)


def _padded(columns: Sequence[Tensor], value: int) -> Tensor:
    """Concatenate (B, ..., S) with different S; (B,) have no axis to pad."""
    if columns[0].dim() == 1:
        return torch.cat(list(columns))
    length = max(column.shape[-1] for column in columns)
    return torch.cat([F.pad(column, (0, length - column.shape[-1]), value=value) for column in columns])


def join_embeds(embeds: Sequence[Tensor | None], k: int) -> Tensor | None:
    """Concatenate embeddings (B, k S, H), padded to the longest row, in the graph; None if there are none."""
    rows = [each.unflatten(1, (k, -1)) for each in embeds if each is not None]
    assert len(rows) in (0, len(embeds)), "either all lanes have embeddings or none"
    length = max((each.shape[2] for each in rows), default=0)
    given = [F.pad(each, (0, 0, 0, length - each.shape[2])).flatten(1, 2) for each in rows]
    return torch.cat(given) if given else None


def split(out: Outputs, batches: Sequence[Batch]) -> list[Outputs]:
    """Each lane's own outputs, with hidden states as long as its own batch."""
    k, longest = batches[0].rows_each, max(batch.length for batch in batches)

    def own(states: Tensor, batch: Batch) -> Tensor:
        if states.shape[1] != longest:  # these states do not belong to tokens
            return states
        return states.unflatten(1, (k, -1))[:, :, : batch.length // k].flatten(1, 2)

    sizes = [batch.num_samples for batch in batches]
    likelihoods = out.likelihood.split(sizes)
    losses, scores = out.losses.split(sizes), out.given.split(out.likelihood.rows(sizes))
    hidden = [states.split(sizes) for states in out.hidden]
    lasts = None if out.last is None else out.last.split(sizes)
    return [
        Outputs(
            losses[d],
            scores[d],
            tuple(own(states[d], batch) for states in hidden),
            likelihoods[d],
            None if lasts is None else own(lasts[d], batch),
        )
        for d, batch in enumerate(batches)
    ]
