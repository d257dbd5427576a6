"""Privacy rules: the accountant, DP-FedAvg on device and server, what they go with, and runs with them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import after_rounds, classes, make_digits, make_regression, make_tiny
from pydantic import ValidationError
from scipy.stats import norm

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.learning.budget import Budget
from fibec_ray.method import Method
from fibec_ray.parts.privacy import PRIVACIES, accounting
from fibec_ray.parts.privacy.base import Exposure, Privacy
from fibec_ray.parts.privacy.clipping import clipped
from fibec_ray.parts.privacy.device_dp import BELOW, CLIP
from fibec_ray.preflight.check import foresee
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.tensors import Tensors, digest, joint_norm, num_bytes
from fibec_ray.types import DeviceUpdate

pytest.importorskip("dp_accounting", reason="epsilon is computed by dp-accounting")

NO_LIMIT = {"kind": "device_dp", "clip": None, "noise": 0}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def device_dp(**fields: Any) -> Any:
    return PRIVACIES["device_dp"].model_validate(fields)


def exposure(rounds: int = 20, sampling: Any = "fixed", devices: int = 100, cohort: int = 10) -> Exposure:
    return Exposure(rounds, devices, cohort, sampling, lambda after: 2 * after)


def released(
    part: Privacy, deltas: Sequence[Tensors], cohort: int, seed: int = 0, state: Tensors | None = None, **extras: Any
) -> tuple[Tensors, Tensors]:
    """What an aggregator sees, and the new state."""
    updates = [DeviceUpdate(device, 5 + device, 3, delta, dict(extras)) for device, delta in enumerate(deltas)]
    like = {name: torch.zeros_like(value) for name, value in deltas[0].items()}
    (only,), after = part.release(part.start() if state is None else state, updates, like, cohort, rng(seed))
    return only.delta, after


# --- the accountant


def test_epsilon_is_that_of_the_tutorial_or_tighter() -> None:
    """TensorFlow Privacy's tutorial: 15 epochs of MNIST in batches of 250 with noise 1.3 are epsilon 1.18 by Renyi
    divergences; Abadi et al. 2016: q = 0.01, noise 4 and 10,000 steps are 1.26 by the moments accountant."""
    assert 0.7 * 1.18 < accounting.poisson(1.3, 250 / 60_000, 1e-5, 3600) < 1.18
    assert 0.7 * 1.26 < accounting.poisson(4.0, 0.01, 1e-5, 10_000) < 1.26


@pytest.mark.parametrize("rounds", [1, 2])
def test_epsilon_of_few_rounds_is_that_of_the_densities(rounds: int) -> None:
    """delta = integral of max(p - exp(e) q, 0), with p = (1 - s) N(0, z^2) + s N(1, z^2) and q = N(0, z^2) in each
    round, for whichever of p and q comes first."""
    z, s, step = 0.8, 0.2, 0.01
    x = np.arange(-7, 8, step)
    q, p = norm.pdf(x, 0, z), (1 - s) * norm.pdf(x, 0, z) + s * norm.pdf(x, 1, z)
    if rounds == 2:
        q, p = np.outer(q, q), np.outer(p, p)
    found = accounting.poisson(z, s, 1e-5, rounds)
    deltas = [np.maximum(one - math.exp(found) * other, 0).sum() * step**rounds for one, other in ((p, q), (q, p))]
    assert max(deltas) == pytest.approx(1e-5, rel=0.02)


def test_epsilon_of_rounds_with_everyone_solves_the_formula_of_balle_and_wang() -> None:
    """delta = F(1 / 2s - e s) - exp(e) F(-1 / 2s - e s) with s = z / sqrt(T), F the normal distribution function."""
    s = 3.0 / math.sqrt(12)
    found = accounting.gaussian(3.0, 1e-5, 12)
    delta = norm.cdf(1 / (2 * s) - found * s) - math.exp(found) * norm.cdf(-1 / (2 * s) - found * s)
    assert delta == pytest.approx(1e-5, rel=1e-4)
    assert accounting.fixed_size(3.0, 40, 40, 1e-5, 12) == found
    assert accounting.poisson(3.0, 1.0, 1e-5, 12) == found
    assert accounting.poisson(3.0, 0.999, 1e-5, 12) == pytest.approx(found, rel=0.01)


def test_epsilon_of_cohorts_of_a_fixed_size_is_within_the_general_bound() -> None:
    """Theorem 9 of Wang et al., for any mechanism; the accountant also uses theorem 27, for the Gaussian one. It is
    above that of Poisson sampling, where neighbours differ by one device and not by two."""
    z, q, count = 6.0, 0.1, 30

    def gaussian(order: int) -> float:
        return order / (2 * (z / 2) ** 2)  # the sensitivity to a replaced device is 2 C

    def bound(order: int) -> float:
        second = min(4 * math.expm1(gaussian(2)), 2 * math.exp(gaussian(2)))
        total = 1 + q**2 * math.comb(order, 2) * second
        total += sum(2 * q**j * math.comb(order, j) * math.exp((j - 1) * gaussian(j)) for j in range(3, order + 1))
        return math.log(total) / (order - 1)

    # Epsilon from Renyi divergences: Canonne, Kamath and Steinke 2020, proposition 12.
    general = min(
        count * bound(order) + math.log1p(-1 / order) - math.log(1e-5 * order) / (order - 1) for order in range(2, 65)
    )
    found = accounting.fixed_size(z, 100, 10, 1e-5, count)
    assert 0.5 * general < found <= general
    assert accounting.poisson(z, q, 1e-5, count) < found < accounting.gaussian(z / 2, 1e-5, count)


def test_epsilon_grows_with_rounds_and_falls_with_noise() -> None:
    for sampling in ("fixed", "poisson"):
        found = [device_dp(noise=2).epsilon(exposure(sampling=sampling), rounds) for rounds in (0, 1, 5, 20)]
        assert found[0] is None and 0 < found[1] < found[2] < found[3]
        assert device_dp(noise=3).epsilon(exposure(sampling=sampling), 20) < found[3]
    assert device_dp(noise=0).epsilon(exposure(), 20) is None
    assert PRIVACIES["none"]().epsilon(exposure(), 20) is None


@pytest.mark.parametrize("kind", ["device_dp", "sample_dp"])
@pytest.mark.parametrize("target", [1.0, 8.0])
def test_a_target_gives_the_smallest_noise_that_meets_it(kind: str, target: float) -> None:
    part = PRIVACIES[kind].model_validate({"target_epsilon": target}).calibrated(exposure())
    assert part.epsilon(exposure(), 20) <= target  # type: ignore[operator]
    less = part.model_copy(update={"noise": part.noise / 1.003})  # type: ignore[attr-defined]
    assert less.epsilon(exposure(), 20) > target  # type: ignore[operator]
    assert "delta 1e-05" in part.guarantee(exposure())
    assert type(part).model_validate(part.model_dump()) == part


def test_samples_are_visited_once_a_local_epoch_of_the_busiest_device() -> None:
    part = PRIVACIES["sample_dp"].model_validate({"noise": 5})
    assert part.epsilon(exposure(), 3) == accounting.gaussian(5, 1e-5, 6)
    experiment = check(make_tiny({"name": "x", "privacy": {"kind": "sample_dp", "noise": 5}}, local={"epochs": 2}), "x")
    budget = Budget(experiment.job(classes(6)))
    assert [budget.exposure.visits(rounds) for rounds in (0, 1)] == [0, 2]
    assert 2 <= budget.exposure.visits(3) <= 6


def test_without_the_library_a_run_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'fibec_ray\[privacy\]'.*noise=0"):
        device_dp(noise=1.0).epsilon(exposure(), 1)
    assert device_dp(noise=0).calibrated(exposure()).epsilon(exposure(), 1) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise": 1, "target_epsilon": 1}, "both set.*leave one of them out"),
        ({"clip": None}, "set clip, or noise: 0"),
        ({"clip_rate": 0.5}, "clip_rate has an effect only with quantile"),
        ({"count_noise": 1.0}, "count_noise has an effect only with quantile"),
        ({"quantile": 0.5, "noise_at": "device"}, "set noise_at: server, or quantile: null"),
        ({"quantile": 0.5, "clip": None, "noise": 0}, "set clip to where it starts"),
        ({"delta": 0}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        device_dp(**fields)


# --- DP-FedAvg


def test_the_server_sees_the_clipped_sum_divided_by_the_expected_cohort() -> None:
    """Norms 5 and 0.5 with C = 1: (3, 4) becomes (0.6, 0.8); the sum (0.6, 1.3) is divided by 4, though two came."""
    part = device_dp(noise=0, clip=1.0)
    deltas = [
        {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])},
        {"a": torch.tensor([0.0]), "b": torch.tensor([0.5])},
    ]
    mean, state = released(part, deltas, cohort=4)
    assert mean["a"].item() == pytest.approx(0.15) and mean["b"].item() == pytest.approx(0.325) and state == {}
    sent = [part.protect(delta, {}, 4, rng())[0] for delta in deltas]
    assert joint_norm(sent[0]) == pytest.approx(1.0) and sent[1] is deltas[1]
    again, _ = released(part, sent, cohort=4)
    assert all(torch.allclose(again[name], value) for name, value in mean.items())


def test_noise_has_the_deviation_that_the_accountant_assumes() -> None:
    """z C / m an entry: 0.5 * 2 / 4. With 40,000 entries the estimate has a relative deviation of 0.35 %."""
    zero = [{"x": torch.zeros(200, 200)}] * 4
    mean, _ = released(device_dp(noise=0.5, clip=2.0), zero, cohort=4)
    assert mean["x"].std().item() == pytest.approx(0.25, rel=0.02) and abs(mean["x"].mean().item()) < 0.005
    assert digest(mean) == digest(released(device_dp(noise=0.5, clip=2.0), zero, cohort=4)[0])
    assert digest(mean) != digest(released(device_dp(noise=0.5, clip=2.0), zero, cohort=4, seed=1)[0])


@pytest.mark.parametrize("arrived", [4, 1, 0])
def test_noise_of_devices_adds_up_to_the_same_and_the_server_adds_what_is_missing(arrived: int) -> None:
    part, zero = device_dp(noise=0.5, clip=2.0, noise_at="device"), {"x": torch.zeros(200, 200)}
    sent = [part.protect(zero, {}, 4, rng(10 + device))[0] for device in range(arrived)]
    updates = [DeviceUpdate(device, 5, 3, delta) for device, delta in enumerate(sent)]
    (only,), _ = part.release({}, updates, zero, 4, rng())
    assert only.delta["x"].std().item() == pytest.approx(0.25, rel=0.02)
    if arrived == 4:  # nothing is missing
        total = sum(delta["x"].double() for delta in sent) / 4
        assert torch.equal(only.delta["x"], total.float())


def test_a_round_without_updates_adds_noise_all_the_same() -> None:
    like = {"x": torch.zeros(5)}
    (only,), _ = device_dp(noise=1).release({}, [], like, 4, rng())
    assert only.delta["x"].abs().min() > 0
    assert PRIVACIES["none"]().release({}, [], like, 4, rng()) == ([], {})


def test_the_clipping_norm_follows_the_quantile() -> None:
    """Two of four below C = 1 with quantile 0.9: C grows by exp(0.2 * 0.4). All: it shrinks by exp(-0.2 * 0.1)."""
    part = device_dp(noise=0, clip=1.0, quantile=0.9)
    short, long = {"x": torch.tensor([0.5])}, {"x": torch.tensor([3.0])}
    state = part.start()
    assert num_bytes(part.sent(state)) == 8
    bits = [float(part.protect(delta, state, 4, rng())[1][BELOW]) for delta in (short, long)]
    assert bits == [1, 0]
    updates = [DeviceUpdate(k, 5, 3, short, {BELOW: torch.tensor([float(k < 2)])}) for k in range(4)]
    _, after = part.release(state, updates, short, 4, rng())
    assert after[CLIP].item() == pytest.approx(math.exp(0.08))
    updates = [DeviceUpdate(k, 5, 3, short, {BELOW: torch.tensor([1.0])}) for k in range(4)]
    _, after = part.release(state, updates, short, 4, rng())
    assert after[CLIP].item() == pytest.approx(math.exp(-0.02))
    assert joint_norm(part.protect(long, after, 4, rng())[0]) == pytest.approx(math.exp(-0.02))


def test_adaptive_clipping_shares_the_noise_between_deltas_and_counts() -> None:
    """z'^-2 + (2 s)^-2 = z^-2, with s = 3 and z = 1."""
    part = device_dp(noise=1.0, clip=1.0, quantile=0.5, count_noise=3.0)
    mean, _ = released(part, [{"x": torch.zeros(200, 200)}] * 4, 4, **{BELOW: torch.ones(1)})
    scale = 4 * mean["x"].double().std().item()
    assert scale**-2 + 6.0**-2 == pytest.approx(1.0, rel=0.05)
    with pytest.raises(ConfigError, match=r"count_noise 0.5 must be above half of the noise.*raise it"):
        device_dp(noise=1.0, quantile=0.5, count_noise=0.5).calibrated(exposure())


def test_clipping_without_a_limit_changes_nothing() -> None:
    tensors = {"x": torch.randn(3, generator=rng())}
    assert clipped(tensors, None) is tensors and clipped(tensors, joint_norm(tensors)) is tensors


# --- in a run


@pytest.mark.parametrize("kind", ["device_dp", "sample_dp"])
def test_no_noise_and_no_limit_is_fedavg_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Devices count equally with device_dp, so FedAvg has uniform weights."""
    uniform = {"aggregator": {"kind": "mean", "weights": "uniform"}} if kind == "device_dp" else {}
    plain, *_ = after_rounds(3, make_regression({"name": "x", **uniform}), tmp_path / "plain")
    rule = {"privacy": {**NO_LIMIT, "kind": kind}}
    private, _, reports = after_rounds(3, make_regression({"name": "x", **rule}), tmp_path / "private")
    assert digest(private.adapter()) == digest(plain.adapter())
    assert all(report.quarantined is None for report in reports)


def test_with_equal_shards_it_is_fedavg_as_it_is(tmp_path: Path) -> None:
    equal = {"partition": "iid", "data": {"regression": {"num_train": 96, "num_test": 40}}}  # 16 samples each
    plain, *_ = after_rounds(2, make_regression({"name": "x"}, **equal), tmp_path / "plain")
    private, *_ = after_rounds(2, make_regression({"name": "x", "privacy": NO_LIMIT}, **equal), tmp_path / "private")
    assert digest(private.adapter()) == digest(plain.adapter())


def test_the_sum_is_divided_by_the_updates_that_a_schedule_expects(tmp_path: Path) -> None:
    """Two devices at work, one update to a round: without noise and limit each update counts as it is."""
    one_each = {"schedule": {"kind": "buffered", "buffer": 1}, "cohort_size": 2, "rounds": 4}
    runs = [
        simulate(check(make_regression({"name": "x", **parts}, **one_each), "test"), tmp_path / str(number))
        for number, parts in enumerate([{}, {"privacy": NO_LIMIT}])
    ]
    assert runs[0].adapter_digest == runs[1].adapter_digest


@pytest.mark.parametrize("optimiser", ["momentum", "adam"])
def test_server_optimisers_take_the_noised_mean(optimiser: str, tmp_path: Path) -> None:
    method = {"name": "x", "aggregator": optimiser, "privacy": {"kind": "device_dp", "noise": 1, "clip": 0.1}}
    fleet, spec, _ = after_rounds(2, make_regression(method), tmp_path / "run")
    again, *_ = after_rounds(2, make_regression(method), tmp_path / "again")
    assert digest(fleet.adapter()) == digest(again.adapter())
    moved = {name: value - spec.worker().initial[name] for name, value in fleet.adapter().items()}
    assert all(value.abs().min() > 0 for value in moved.values())  # noise moves every entry


def test_the_server_clips_again_what_a_codec_has_lengthened(tmp_path: Path) -> None:
    """Signs times the mean magnitude keep the norm or shorten it; int8 may lengthen it. The step stays within C."""
    method = {"name": "x", "uplink": "int8", "privacy": {"kind": "device_dp", "noise": 0, "clip": 0.01}}
    fleet, spec, reports = after_rounds(1, make_regression(method), tmp_path / "run")
    step = {name: value.double() - spec.worker().initial[name] for name, value in fleet.adapter().items()}
    assert 0 < joint_norm(step) <= 0.01 * (1 + 1e-4)
    assert all(report.quarantined is None for report in reports)


def test_the_clipping_norm_is_part_of_the_servers_state(tmp_path: Path) -> None:
    rule = {"kind": "device_dp", "noise": 1, "clip": 0.5, "quantile": 0.5}
    fleet, _, reports = after_rounds(2, make_digits({"name": "x", "privacy": rule}), tmp_path / "run")
    state = fleet._server.state()
    assert state["privacy/clip"].item() != 0.5
    assert {report.bytes_up_extras for report in reports} == {4}
    before = digest(fleet._server.broadcast(2).privacy)
    fleet._server.restore(state)
    assert digest(fleet._server.broadcast(2).privacy) == before


# --- what they go with

WITH_DEVICES: dict[str, dict[str, Any]] = {
    "krum": {"aggregator": "krum"},
    "median": {"aggregator": "median"},
    "nova": {"aggregator": "nova"},
    "fipa": {"aggregator": "fipa"},
    "fedfisher": {"aggregator": "fedfisher"},
    "inner": {"aggregator": {"kind": "momentum", "of": "fisher_merging"}},
    "flexlora": {"aggregator": "flexlora"},
    "peptao": {"aggregator": "peptao"},
    "scaffold": {"objective": "scaffold"},
    "adalora": {"objective": "adalora", "peft": "adalora"},
    "batches": {"aggregator": {"kind": "mean", "weights": "batches"}},
}


@pytest.mark.parametrize("name", WITH_DEVICES)
def test_methods_that_need_more_than_a_mean_are_rejected(name: str) -> None:
    Method.model_validate({"name": "x", **WITH_DEVICES[name]})
    with pytest.raises(ValidationError, match=r"privacy: none|leave aggregator.weights out"):
        Method.model_validate({"name": "x", **WITH_DEVICES[name], "privacy": "device_dp"})


def test_the_remedies_work() -> None:
    mean = Method.model_validate({"name": "x", "aggregator": "mean", "privacy": "device_dp"})
    assert mean.privacy.kind == "device_dp"
    message = rejection({"aggregator": "krum", "privacy": "device_dp"})
    able = message.split("set aggregator to one of: ")[1].split(";")[0].split(", ")
    assert "mean" in able and "adam" in able and "krum" not in able
    for kind in able:
        Method.model_validate({"name": "x", "aggregator": kind, "privacy": "device_dp"})


def rejection(parts: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        Method.model_validate({"name": "x", **parts})
    return str(caught.value)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"objective": "moon"}, "set objective: plain"),
        ({"objective": "self_evolution"}, "set objective: plain"),
        ({"solver": "ditto"}, "needs solver 'single'"),
        ({"aggregator": "fipa"}, "protects local training alone"),
        ({"aggregator": {"kind": "adam", "of": "fedfisher"}}, "protects local training alone"),
    ],
)
def test_gradients_of_samples_are_those_of_the_plain_loss(beside: dict[str, Any], message: str) -> None:
    assert message in rejection({**beside, "privacy": "sample_dp"})
    for allowed in ({"aggregator": "krum"}, {"objective": "proximal"}, {"objective": "scaffold"}, {"uplink": "nf4"}):
        Method.model_validate({"name": "x", **allowed, "privacy": "sample_dp"})


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"uplink": "int8"}, "set uplink: none"),
        ({"peft": {"kind": "lora", "ranks": [4, 8]}}, "set privacy.noise_at: server"),
    ],
)
def test_noise_at_the_device_must_arrive_as_it_is(beside: dict[str, Any], message: str) -> None:
    at_device = {"kind": "device_dp", "noise_at": "device"}
    assert message in rejection({**beside, "privacy": at_device})
    for parts in ({**beside, "privacy": "device_dp"}, {"privacy": at_device}):
        Method.model_validate({"name": "x", **parts})


def test_pooled_data_need_no_privacy_rule() -> None:
    assert "pooled: true" in rejection({"pooled": True, "privacy": "device_dp"})


def test_the_log_and_the_plan_show_epsilon_and_an_empty_round_has_noise_too(tmp_path: Path) -> None:
    """On average 1 of 6 devices takes part, so some of 6 rounds are empty. Each moves the model all the same."""
    experiment = check(make_regression("dp-fedavg", sampler="poisson", cohort_size=1, rounds=6), "test")
    simulate(experiment, tmp_path / "run")
    rows = read_rounds(tmp_path / "run").to_pylist()
    assert 0 in [row["num_devices"] for row in rows[1:]]
    assert len({row["adapter_digest"] for row in rows}) == 7
    epsilons = [row["epsilon"] for row in rows]
    assert epsilons[0] is None and epsilons[1:] == sorted(epsilons[1:]) and 7.9 < epsilons[-1] <= 8
    outlook = foresee(experiment, prepare, tmp_path / "planned", cache_dir())
    assert outlook.epsilon == epsilons[-1] and "one device more or less" in outlook.guarantee
