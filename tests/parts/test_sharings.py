"""Which tensors each sharing rule sends, by name (FibecFed's own rule: test_sensitivity.py)."""

from __future__ import annotations

import pytest
import torch

from fibec_ray.errors import ConfigError
from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.parts.sharing.fixed import Body, Matrices, Nothing
from fibec_ray.parts.sharing.gal import GlobalLayers
from fibec_ray.types import Layout

ADAPTER = {f"layer.{layer}.query.lora_{matrix}.weight": layer for layer in range(3) for matrix in "AB"}
LAYERS: dict[str, int | None] = {**ADAPTER, "head.weight": None, "head.bias": None}


def shared(sharing: Sharing, layers: dict[str, int | None] = LAYERS) -> set[str]:
    return set(sharing.select([], Layout(layers, 3, {}), torch.Generator()).names)


@pytest.mark.parametrize("matrix", ["A", "B"])
def test_one_matrix_of_each_pair_is_sent_and_the_head_stays(matrix: str) -> None:
    assert shared(Matrices(share=matrix)) == {name for name in ADAPTER if f"lora_{matrix}" in name}  # type: ignore[arg-type]


def test_the_head_can_be_sent_with_the_matrices() -> None:
    sent = shared(Matrices(head="shared"))
    assert {"head.weight", "head.bias"} < sent and len(sent) == 5


def test_matrices_need_lora() -> None:
    with pytest.raises(ConfigError, match="method.sharing: matrices shares LoRA's A, but method.peft has none"):
        shared(Matrices(), {"layer.0.key.ia3_l": 0})


@pytest.mark.parametrize(("last_blocks", "count"), [(0, 6), (1, 4), (3, 0), (9, 0)])
def test_the_body_is_sent_up_to_the_last_blocks(last_blocks: int, count: int) -> None:
    assert shared(Body(last_blocks=last_blocks)) == set(list(ADAPTER)[:count])


def test_a_body_without_a_head_is_everything() -> None:
    """E23: with a verbaliser FedPer is FedAvg."""
    assert shared(Body(), dict(ADAPTER)) == shared(Sharing(), dict(ADAPTER)) == set(ADAPTER)


def test_local_training_sends_nothing() -> None:
    assert shared(Nothing()) == set()


@pytest.mark.parametrize("sharing", [Body(), GlobalLayers()])
def test_rules_that_tell_blocks_apart_need_tensors_in_them(sharing: Sharing) -> None:
    with pytest.raises(
        ConfigError, match="method.sharing: .* no tensor of method.peft is in a block; set sharing: all"
    ):
        shared(sharing, {"prompt_encoder.embedding.weight": None, "head.weight": None})
