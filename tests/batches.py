"""Batches of texts that tests write out."""

from __future__ import annotations

from torch import Tensor

from fibec_ray.model_types import Batch


def of_texts(input_ids: Tensor, attention_mask: Tensor, labels: Tensor, answer_at: Tensor) -> Batch:
    """A batch of texts without token types. Shapes as in `Batch`."""
    return Batch({"input_ids": input_ids, "attention_mask": attention_mask, "answer_at": answer_at}, labels)


def first(batch: Batch, count: int) -> Batch:
    """The first samples of a batch."""
    return Batch({name: column[:count] for name, column in batch.inputs.items()}, batch.labels[:count])


def row(batch: Batch, i: int) -> Batch:
    """Sample i alone, without padding."""
    size = int(batch.inputs["attention_mask"][i].sum())
    inputs = {name: column[i : i + 1] for name, column in batch.inputs.items()}
    return Batch(
        {name: column[:, :size] if column.dim() == 2 else column for name, column in inputs.items()},
        batch.labels[i : i + 1],
    )


def tokens(batch: Batch) -> dict[str, Tensor]:
    """The arguments of a transformers model."""
    return {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
