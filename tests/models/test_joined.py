"""Batches of several devices joined into one, column by column."""

from __future__ import annotations

import pytest
import torch
from batches import of_texts

from fibec_ray.model_types import NO_LABEL, Batch, Outputs
from fibec_ray.models.joined import join, join_embeds, split


def texts(ids: list[list[int]]) -> Batch:
    tokens = torch.tensor(ids)
    at = torch.full((len(ids),), tokens.shape[1] - 1)
    return of_texts(tokens, torch.ones_like(tokens), torch.arange(len(ids)), at)


def test_texts_are_padded_to_the_longest() -> None:
    joined = join([texts([[5, 6, 7], [8, 9, 5]]), texts([[6]])], pad_id=3)
    assert joined.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 9, 5], [6, 3, 3]]
    assert joined.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert joined.inputs["answer_at"].tolist() == [2, 2, 0] and joined.labels.tolist() == [0, 1, 0]
    assert (joined.num_samples, joined.length) == (3, 3)


def test_other_inputs_keep_their_shape() -> None:
    images = [Batch({"features": torch.rand(count, 1, 2, 2)}, torch.zeros(count)) for count in (2, 1)]
    joined = join(images, pad_id=3)
    assert torch.equal(joined.inputs["features"], torch.cat([each.inputs["features"] for each in images]))
    assert (joined.num_samples, joined.length) == (3, 1)


def test_labels_of_tokens_are_padded_too() -> None:
    joined = join([Batch({}, torch.ones(1, 3, dtype=torch.int64)), Batch({}, torch.ones(1, 1, dtype=torch.int64))], 0)
    assert joined.labels.tolist() == [[1, 1, 1], [1, NO_LABEL, NO_LABEL]]


def test_lanes_with_different_inputs_are_not_joined() -> None:
    with pytest.raises(AssertionError, match="different inputs"):
        join([texts([[5]]), Batch({"features": torch.rand(1, 4)}, torch.zeros(1))], 0)


def test_real_positions_of_two_texts_per_sample_lie_one_after_the_other() -> None:
    """States (B, 2 S, H) of a column (B, 2, S)."""
    mask = torch.tensor([[[1, 1, 0], [1, 0, 0]]])
    batch = Batch({"input_ids": torch.zeros_like(mask), "attention_mask": mask}, torch.zeros(1))
    assert batch.length == 6 and batch.real(torch.zeros(1, 6, 4)).flatten().tolist() == [1, 1, 0, 1, 0, 0]


def test_embeddings_are_padded_row_by_row() -> None:
    """Two texts per sample: (1, 2 x 2, 1) and (1, 2 x 1, 1) become (2, 2 x 2, 1)."""
    embeds = [torch.tensor([[[1.0], [2], [3], [4]]]), torch.tensor([[[5.0], [6]]])]
    joined = join_embeds(embeds, 2)
    assert joined is not None and joined.flatten(1).tolist() == [[1, 2, 3, 4], [5, 0, 6, 0]]
    assert join_embeds([None, None], 1) is None


def test_states_that_are_not_of_tokens_are_not_cut() -> None:
    """Those of images, whose batches have the length 1; states of texts are cut to their own lanes' lengths."""
    images = [Batch({"features": torch.rand(1, 3, 2, 2)}, torch.zeros(1)) for _ in range(2)]
    lanes = [texts([[5, 6, 7]]), texts([[6]])]
    for batches, lengths in ((images, [5, 5]), (lanes, [3, 1])):
        states = torch.rand(2, max(lengths), 4)
        found = split(Outputs(torch.zeros(2), torch.zeros(2, 3), (states,), last=states), batches)
        assert [out.hidden[0].shape[1] for out in found] == lengths
        assert [out.last.shape[1] for out in found if out.last is not None] == lengths
