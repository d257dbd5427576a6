"""Joins the batches of several devices, and splits the outputs.

Shapes: B samples of a lane, S tokens of its longest, H hidden size, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.model_types import Batch, Outputs, TypedBatch


def join(batches: Sequence[Batch], pad_id: int) -> Batch:
    """Concatenate the samples of all batches, right-padded to the longest."""
    length = max(batch.input_ids.shape[1] for batch in batches)

    def padded(tensors: list[Tensor], value: int) -> Tensor:
        return torch.cat([F.pad(tensor, (0, length - tensor.shape[1]), value=value) for tensor in tensors])

    columns = (
        padded([batch.input_ids for batch in batches], pad_id),
        padded([batch.attention_mask for batch in batches], 0),
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.answer_at for batch in batches]),
    )
    types = [batch.token_types for batch in batches if isinstance(batch, TypedBatch)]
    assert len(types) in (0, len(batches)), "either all lanes have token types or none"
    return TypedBatch(*columns, padded(types, 0)) if types else Batch(*columns)


def join_embeds(embeds: Sequence[Tensor | None], length: int) -> Tensor | None:
    """Concatenate embeddings (B, S, H), in the graph; None if there are none."""
    given = [F.pad(each, (0, 0, 0, length - each.shape[1])) for each in embeds if each is not None]
    assert len(given) in (0, len(embeds)), "either all lanes have embeddings or none"
    return torch.cat(given) if given else None


def split(out: Outputs, batches: Sequence[Batch]) -> list[Outputs]:
    """Each lane's own outputs, with hidden states as long as its own batch."""
    sizes = [len(batch.labels) for batch in batches]
    responses = [None] * len(sizes) if out.response is None else out.response.split(sizes)
    rows = sizes if out.response is None else [len(part.targets) for part in responses if part is not None]
    losses, scores = out.losses.split(sizes), out.scores.split(rows)
    hidden = [states.split(sizes) for states in out.hidden]
    lasts = None if out.last is None else out.last.split(sizes)
    return [
        Outputs(
            losses[d],
            scores[d],
            tuple(states[d][:, : batch.input_ids.shape[1]] for states in hidden),
            out.likelihood,
            responses[d],
            None if lasts is None else lasts[d][:, : batch.input_ids.shape[1]],
        )
        for d, batch in enumerate(batches)
    ]
