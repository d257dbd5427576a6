"""Which rows of LoRA's products train after a warm-up, by hand-worked changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds
from device_states import stored
from torch import Tensor, nn

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.learning.store import StateStore
from fibec_ray.parts.mask.base import may_move
from fibec_ray.parts.mask.product_rows import ProductRows
from fibec_ray.tensors import Tensors, digest, under_prefix

PAIRS = ["m.layer.0.query", "m.layer.1.query"]
RATE = 0.5


def factors(rows: Sequence[float], pair: str) -> Tensors:
    """A = [[1, 1]], so each row of the product is [b, b]."""
    return {f"{pair}.lora_A.weight": torch.ones(1, 2), f"{pair}.lora_B.weight": torch.tensor(rows).unsqueeze(1)}


@dataclass
class Scripted:
    """A session in which each epoch sets rows of B of the first pair to the next values, and of the second to half."""

    epochs: list[list[float]]
    asked: list[tuple[int, int | None]] = field(default_factory=list)

    def read(self) -> Tensors:
        rows = self.epochs[len(self.asked)]
        return factors(rows, PAIRS[0]) | factors([row / 2 for row in rows], PAIRS[1])

    def train(self, *, first_epoch: int = 0, epochs: int | None = None) -> Tensors:
        self.asked.append((first_epoch, epochs))
        return {}


@dataclass
class Scanned:
    """What a refresh reads of a scan: the shapes of the model's tensors."""

    trainable: dict[str, nn.Parameter]

    @property
    def model(self) -> Scanned:
        return self


SESSION = [[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.0], [1.0, 3.0, 2.0, 0.0]]


def refreshed(mask: ProductRows, memory: Tensors, names: Sequence[str]) -> dict[str, Tensor]:
    values = Scripted(SESSION).read()
    scan: Any = Scanned({name: nn.Parameter(value) for name, value in values.items()})
    return may_move(mask.refresh(memory, scan, names, torch.Generator()), names)


def test_scores_are_squared_changes_over_the_rate_with_momentum_by_hand() -> None:
    """Epoch 1: (1 / .5)^2 = 4 and (2 / .5)^2 = 16; epoch 2: (3 / .5)^2 = 36. With m = .25: 3, 9, 12, 0."""
    session = Scripted(SESSION)
    memory = ProductRows(momentum=0.25, warmup_epochs=2).warm_up({}, session, RATE)
    assert session.asked == [(0, 1), (1, 1)]
    scores = under_prefix("rows", memory)
    assert scores[f"{PAIRS[0]}.lora_B.weight"].tolist() == [3.0, 9.0, 12.0, 0.0]
    assert scores[f"{PAIRS[1]}.lora_B.weight"].tolist() == [0.75, 2.25, 3.0, 0.0]


def test_the_top_rows_of_all_personal_layers_train_and_every_a() -> None:
    """Half of eight rows: 12, 9, 3 and the earlier of two 3s; where only layer 1 is personal, two of its four."""
    mask = ProductRows(momentum=0.25, warmup_epochs=2, ratio=0.5)
    memory = mask.warm_up({}, Scripted(SESSION), RATE)
    names = list(Scripted(SESSION).read())
    kept = refreshed(mask, memory, names)
    assert all(kept[name].all() for name in names if ".lora_A." in name)
    assert kept[f"{PAIRS[0]}.lora_B.weight"].flatten().tolist() == [True, True, True, False]
    assert kept[f"{PAIRS[1]}.lora_B.weight"].flatten().tolist() == [False, False, True, False]
    alone = refreshed(mask, memory, names[2:])
    assert alone.keys() == set(names[2:])
    assert alone[f"{PAIRS[1]}.lora_B.weight"].flatten().tolist() == [False, True, True, False]


def test_a_row_that_the_warm_up_did_not_move_never_trains() -> None:
    mask = ProductRows(warmup_epochs=2, ratio=1.0)
    kept = refreshed(mask, mask.warm_up({}, Scripted(SESSION), RATE), list(Scripted(SESSION).read()))
    assert kept[f"{PAIRS[0]}.lora_B.weight"].flatten().tolist() == [True, True, True, False]


@pytest.mark.slow
def test_the_mask_stays_fixed_and_masked_rows_stay_zero(tiny_settings: Any, tmp_path: Path) -> None:
    """B starts at 0, and what the warm-up trained is discarded."""
    sharing = {"kind": "gal", "score_by": "diff_norm", "max_samples": 2}
    method = {"sharing": sharing, "mask": {"kind": "product_rows", "ratio": 0.5, "warmup_epochs": 2}}
    small = {"rounds": 2, "num_devices": 2, "cohort_size": 2, "data": {"synthetic": {"num_train": 16, "num_test": 4}}}
    _, worker_spec, _ = after_rounds(2, tiny_settings(method, **small), tmp_path)
    store = StateStore(worker_spec.state_dir)
    for device in range(2):
        first, last = (stored(store, device, before=before) for before in (1, 2))
        kept = under_prefix("kept", last.memory["mask"])
        assert digest(kept) == digest(under_prefix("kept", first.memory["mask"]))
        for name in (name for name in kept if ".lora_B." in name):
            rows = kept[name].all(1)
            assert torch.equal(rows, kept[name].any(1))
            assert not last.personal[name][~rows].any() and last.personal[name][rows].any(1).all()
        share = torch.cat([kept[name][:, 0] for name in kept if ".lora_B." in name]).float().mean()
        assert share == 0.5


def test_it_needs_lora_and_scores_with_dropout_need_dropout(tiny_settings: Any) -> None:
    with pytest.raises(ConfigError, match="works on LoRA's matrices"):
        check(tiny_settings({"peft": "ia3", "sharing": "gal", "mask": "product_rows"}), "test")
    with pytest.raises(ConfigError, match="nothing has dropout; set method.peft.dropout"):
        check(tiny_settings({"curriculum": {"kind": "fisher", "dropout": True}}), "test")
    check(tiny_settings({"peft": {"dropout": 0.1}, "curriculum": {"kind": "fisher", "dropout": True}}), "test")
