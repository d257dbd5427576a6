"""FedPepTAO's layer score and its server."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.aggregator.peptao import PepTao
from fibec_ray.parts.part import Setting
from fibec_ray.parts.sharing.gal import GlobalLayers
from fibec_ray.parts.sharing.layer_scores import RIDGE, spread
from fibec_ray.tensors import Tensors
from fibec_ray.types import DeviceUpdate

START = {"w": torch.zeros(1, dtype=torch.float64)}


def sent(device: int, delta: float, num_samples: int = 1, steps: int = 2, lr: float = 0.5) -> DeviceUpdate:
    value = {"w": torch.tensor([delta], dtype=torch.float64)}
    return DeviceUpdate(device, num_samples, steps, value, learning_rate=lr)


def number(tensors: Tensors, name: str) -> float:
    return float(tensors[name])


def test_samples_that_differ_have_the_least_spread() -> None:
    one = 1 + RIDGE
    assert spread(torch.eye(4)) == pytest.approx(4 * (math.log(one) + 1 / one))
    alike = spread(torch.ones(2, 2))  # eigenvalues 2 and 0
    assert alike == pytest.approx(math.log(2 + RIDGE) + 1 / (2 + RIDGE) + math.log(RIDGE) + 1 / RIDGE)


def test_the_first_round_is_fedavg_and_control_variates_are_scaffolds() -> None:
    updates = [sent(3, 1.0, 1), sent(5, 4.0, 2)]
    step, state = PepTao().combine(PepTao().start(START, 4), updates)
    assert torch.equal(step["w"], Mean().combine({}, updates)[0]["w"]) and number(step, "w") == 3
    # c_k = -(c + delta / (steps lr)); c moves by 2 of 4 devices times the mean, weighted by n_k.
    assert number(state, "control/3/w") == -1 and number(state, "control/5/w") == -4
    assert number(state, "c/w") == 0.5 * (-1 - 8) / 3
    assert number(state, "rate") == 0.05 and number(state, "v/w") == 0


@pytest.mark.parametrize(("gradient", "g"), [("difference", 3.0 - 2.0), ("step", -2.0)])
def test_the_second_round_by_hand(gradient: str, g: float) -> None:
    """v_k = .9 * 0 + .1 G + c - c_k; c = -1.5 after the first round; device 5 has c_k = -4, device 6 none yet."""
    rule = PepTao(rate=0.1, gradient=gradient)  # type: ignore[arg-type]
    _, state = rule.combine(rule.start(START, 4), [sent(3, 1.0, 1), sent(5, 4.0, 2)])
    step, after = rule.combine(state, [sent(5, 1.0, 1), sent(6, 3.0, 1)])
    v = [0.1 * g - 1.5 + 4, 0.1 * g - 1.5]
    assert number(after, "v/w") == pytest.approx(sum(v) / 2)
    assert number(step, "w") == pytest.approx(2 - 0.1 * sum(v) / 2)
    assert number(after, "rate") == pytest.approx(0.099) and number(after, "last/w") == 2
    assert number(after, "control/3/w") == -1, "devices that were not drawn keep theirs"
    assert number(after, "control/5/w") == pytest.approx(-4 + 1.5 - 1)


def test_the_rate_does_not_fall_below_its_end() -> None:
    rule = PepTao(rate=0.001, least_rate=0.00099)
    state = rule.start(START, 2)
    for _ in range(5):
        _, state = rule.combine(state, [sent(0, 0.0)])
    assert number(state, "rate") == 0.00099


def test_settings_of_the_noise_have_no_place_beside_similarity() -> None:
    assert GlobalLayers(score_by="similarity").score_by == "similarity"
    with pytest.raises(ValidationError, match="budget: no effect with score_by: similarity, which adds no noise"):
        GlobalLayers(score_by="similarity", budget=0.1)


def test_similarity_adds_no_noise_so_it_is_fit_for_bfloat16() -> None:
    half = Setting(1, 2, "adamw", 0.9, "bfloat16", 2)
    assert GlobalLayers(score_by="similarity").unfit_for(half) is None
    assert "too small for the precision" in str(GlobalLayers().unfit_for(half))
