"""Every aggregator, whatever little there is to combine: one device, one sample, no curvature, no change, no steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fibec_ray.low_rank import MOVED
from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.fedfisher import best_fit, upper
from fibec_ray.parts.aggregator.over_factors import OverFactors
from fibec_ray.parts.aggregator.same_products import FedSvd
from fibec_ray.parts.objective.feddyn import DynamicRegulariser
from fibec_ray.parts.objective.proximal import Proximal
from fibec_ray.parts.objective.scaffold import Scaffold
from fibec_ray.tensors import Tensors, all_finite, weighted_mean
from fibec_ray.types import DeviceUpdate

SHAPES = {"x.lora_A.weight": (2, 3), "x.lora_B.weight": (4, 2), "head.weight": (1, 3), "head.bias": (1,)}
MODULES = {"x.lora_A": (3, 2), "x.lora_B": (2, 4), "head": (4, 1)}
"""Columns of the inputs (with a bias, one more) and of the outputs."""
BLOCKS = {"x": ["x.lora_A.weight", "x.lora_B.weight"], "head": ["head.weight", "head.bias"]}
AT_THE_LIMIT: dict[str, dict[str, Any]] = {
    "fedfisher without damping": {"kind": "fedfisher", "damping": 0},
    "fedfisher with one iteration": {"kind": "fedfisher", "iterations": 1, "tolerance": 1e-300},
    "fisher merging without eps": {"kind": "fisher_merging", "eps": 0},
    "damped fipa": {"kind": "fipa", "solve": "damped", "trust": None},
    "fipa with a null space": {"kind": "fipa", "null_space": "fedavg", "trust": None},
    "adam with the smallest tau": {"kind": "adam", "tau": 1e-300, "b2": 0},
    "yogi with the smallest tau": {"kind": "yogi", "tau": 1e-300},
    "adagrad of krum": {"kind": "adagrad", "of": {"kind": "krum", "num_byzantine": 3}},
    "momentum of nova": {"kind": "momentum", "of": "nova"},
    "adam of fedfisher": {"kind": "adam", "of": "fedfisher"},
    "krum of many": {"kind": "krum", "num_byzantine": 0, "num_selected": 9},
    "peptao by steps": {"kind": "peptao", "gradient": "step"},
}
RULES: dict[str, Aggregator] = {
    **{kind: one() for kind, one in AGGREGATORS.items()},
    **{
        name: AGGREGATORS[fields["kind"]].model_validate(fields, context=AGGREGATORS)
        for name, fields in AT_THE_LIMIT.items()
    },
}
SIZES = [0.0, 1e-38, 1e-20, 1.0, 1e4]
devices = st.lists(
    st.tuples(
        st.integers(0, 3),  # seed: devices with the same one are identical
        st.sampled_from(SIZES),  # of the delta
        st.sampled_from([0.0, 1e-45, 1e-30, 1.0, 1e30]),  # of the curvature
        st.integers(0, 2),  # its rank
        st.sampled_from([0, 1, 2, 10**6]),  # samples
        st.sampled_from([0, 1, 7]),  # steps
    ),
    max_size=4,
)


def covariance(size: int, rank: int, scale: float, rng: torch.Generator) -> Tensor:
    root = torch.randn(size, min(rank, size), generator=rng)
    return scale * (root @ root.T)


def update(device: int, one: tuple[int, float, float, int, int, int], shared: Tensors) -> DeviceUpdate:
    seed, size, curvature, rank, samples, steps = one
    rng = torch.Generator().manual_seed(seed)
    names = [name for name in shared if not name.endswith(MOVED)]
    delta = {n: size * torch.randn(SHAPES[n], generator=rng) for n in names}
    extras = {f"fisher/{n}": curvature * torch.rand(SHAPES[n], generator=rng) for n in names}
    for prefix, (columns, rows) in MODULES.items():
        extras[f"inputs/{prefix}"] = upper(covariance(columns, rank, curvature, rng))
        extras[f"outputs/{prefix}"] = upper(covariance(rows, rank, curvature, rng))
    for block, members in BLOCKS.items():
        u = torch.linalg.qr(torch.randn(sum(shared[n].numel() for n in members), max(rank, 1), generator=rng)).Q
        extras[f"{block}/values"] = curvature * torch.rand(rank, generator=rng)
        parts = u[:, :rank].split([shared[n].numel() for n in members])
        extras |= {
            f"{block}/vectors/{n}": part.reshape(*SHAPES[n], rank) for n, part in zip(members, parts, strict=True)
        }
    return DeviceUpdate(device, samples, steps, delta, extras, learning_rate=0.1)


def shared_by(rule: Aggregator) -> Tensors:
    rng = torch.Generator().manual_seed(9)
    shared = {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
    moves = rule.usual_partners().get("peft") == "moving_lora"
    return shared | {"x" + MOVED: torch.zeros(4, 3)} if moves else shared


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None, max_examples=40)
@given(first=devices, second=devices)
def test_whatever_comes_the_step_and_the_state_are_finite(name: str, first: list[Any], second: list[Any]) -> None:
    """Two rounds; without updates nothing changes."""
    rule = RULES[name]
    shared = shared_by(rule)
    state = rule.start(shared, 6)
    for cohort in (first, second, []):
        updates = [update(k, one, shared) for k, one in enumerate(cohort)]
        step, new = rule.combine(state, iter(updates))
        assert all_finite(step) and all_finite(new) and new.keys() >= state.keys()
        assert step.keys() <= shared.keys() and all(value.shape == shared[n].shape for n, value in step.items())
        if not any(one[4] for one in cohort) and rule.kind in ("mean", "nova", "fipa", "fedfisher", "fisher_merging"):
            assert step == {} and new == state
        if cohort is first and not any(one[1] for one in cohort) and not isinstance(rule, OverFactors | FedSvd):
            assert not any(value.any() for value in step.values())
        state = new


@pytest.mark.parametrize("name", RULES)
def test_updates_without_tensors_give_no_step(name: str) -> None:
    """Nothing is shared."""
    rule = RULES[name]
    state = rule.start({}, 6)
    for _ in range(2):
        step, state = rule.combine(state, [DeviceUpdate(k, 3, 2, {}, learning_rate=0.1) for k in range(5)])
        assert step == {}


@pytest.mark.parametrize("damping", [0, 0.1])
def test_devices_of_one_sample_have_a_best_fit(damping: float) -> None:
    """Curvature of rank one: after a step or two the residual is rounding, which no preconditioner makes smaller."""
    for seed in range(300):
        rng = torch.Generator().manual_seed(seed)
        columns, rows, count = torch.randint(1, 4, (3,), generator=rng).tolist()
        g, a = ([covariance(size, 1, 1.0, rng).double() for _ in range(count)] for size in (rows, columns))
        deltas = [1e-3 * torch.randn(rows, columns, generator=rng).double() for _ in range(count)]
        found = best_fit([1 / count] * count, g, a, deltas, damping, iterations=100, tolerance=1e-8)
        assert found.isfinite().all() and (count > 1 or torch.allclose(found, deltas[0]))


def test_a_mean_of_nothing_that_counts_is_empty() -> None:
    assert weighted_mean([(0, {"w": torch.ones(2)}), (0, {"w": torch.ones(2)})]) == {}


def test_objectives_of_devices_that_did_nothing_stay_as_they_are() -> None:
    control, delta = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    for steps, rate in ((0, 0.1), (3, 0.0)):
        memory, sent = Scaffold().finish({"w": torch.full((2,), 5.0)}, control, delta, steps, rate)
        assert memory["w"].tolist() == [5, 5] and sent["control/w"].tolist() == [0, 0]
    assert Proximal(mu=1).penalty({}, {}) is None and DynamicRegulariser().penalty({}, {}) is None
