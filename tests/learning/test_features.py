"""A sample's features: how they are computed, and that reading them changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from batches import of_texts
from conftest import TINY_LLAMA, after_rounds

from fibec_ray.learning.local_update import features, features_under
from fibec_ray.model_types import LocalModel, Outputs, Shard
from fibec_ray.tensors import digest

BACKBONES: list[dict[str, Any]] = [{}, {"head": "model"}, {"config": TINY_LLAMA, "head": "causal_lm"}]


@pytest.fixture(params=BACKBONES, ids=["mean_pool", "model", "causal_lm"])
def lent(request: pytest.FixtureRequest, tiny_settings: Any, tmp_path: Path) -> tuple[LocalModel, Shard]:
    """A model in evaluation mode, none of whose trainable values is 0, and a device's data."""
    settings = tiny_settings("fedavg", backbone=request.param, data={"max_length": 24})
    _, worker_spec, _ = after_rounds(0, settings, tmp_path / "run")
    model = worker_spec.worker().model
    model.load({name: value + 0.02 for name, value in model.read().items()})
    model.train(False)
    return model, worker_spec.federation().train_shard(0)


def test_they_are_the_mean_over_real_tokens_by_hand() -> None:
    """Tokens [1, 2] and [3, 6], the third is padding: [2, 4]."""
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0]])
    batch = of_texts(torch.zeros_like(mask), mask, torch.zeros(1), torch.zeros(1))
    out = Outputs(torch.zeros(1), torch.zeros(1, 2), (hidden + 7, hidden))
    assert features(out, batch).tolist() == [[2, 4]]


def test_under_other_values_they_are_those_of_a_model_with_these(lent: tuple[LocalModel, Shard]) -> None:
    """Sample by sample, so without padding; NaN for rows of no batch. The model is as it was afterwards."""
    model, shard = lent
    before = digest(model.read())
    values = {name: value + 0.05 for name, value in model.read().items()}
    found = features_under(values, model, shard, [torch.tensor([3, 0]), torch.tensor([2])])
    assert digest(model.read()) == before
    model.load(values)
    for row in range(shard.num_samples):
        batch = shard.batch(torch.tensor([row]))
        with torch.no_grad():
            own = features(model.forward(batch, hidden=True), batch)
        torch.testing.assert_close(found[row], own[0] if row in (0, 2, 3) else own[0] * torch.nan, equal_nan=True)


def test_asking_for_them_changes_no_bit_of_losses_and_gradients(lent: tuple[LocalModel, Shard]) -> None:
    model, shard = lent
    found = []
    for hidden in (False, True):
        for param in model.trainable.values():
            param.grad = None
        out = model.forward(shard.batch(torch.arange(4)), hidden=hidden)
        out.losses.mean().backward()
        grads = {name: param.grad for name, param in model.trainable.items() if param.grad is not None}
        found.append(digest(grads | {"losses": out.losses.detach()}))
    assert found[0] == found[1]
