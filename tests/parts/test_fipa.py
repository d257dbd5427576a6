"""FIPA against dense matrices on problems whose global optimum is known, and on a tiny model (E15, E16, E18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, VALUES, classes
from pydantic import ValidationError
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.config.load import check
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.model_types import Shard
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.fipa import Fipa
from fibec_ray.parts.aggregator.fisher_merging import FisherMerging
from fibec_ray.reports import DeviceReport
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors, digest, num_bytes
from fibec_ray.types import Asked, DeviceUpdate

SIZE = 10
"""p: entries of the two tensors below"""


@dataclass(frozen=True)
class Client:
    """One device's update as dense algebra has it."""

    h: Tensor
    """(p, p) H_m"""
    delta: Tensor
    """(p,)"""
    num_samples: int = 1


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def low_rank(rank: int, seed: int) -> Tensor:
    """(p, p) of this rank; well-conditioned on its range."""
    g = randn(SIZE, rank, seed=seed)
    u = torch.linalg.qr(g).Q
    return u * torch.linspace(1, 3, rank, dtype=torch.float64) @ u.T


def named(flat: Tensor) -> Tensors:
    """(p, ...) -> tensors (2, 3, ...) and (4, ...)."""
    a, b = flat.split([6, 4])
    return {"a": a.reshape(2, 3, *flat.shape[1:]), "b": b}


def sent(k: int, client: Client) -> DeviceUpdate:
    values, vectors = torch.linalg.eigh(client.h)
    keep = values > 1e-10 * values[-1]
    extras = {f"x/vectors/{name}": value for name, value in named(vectors[:, keep]).items()}
    return DeviceUpdate(k, client.num_samples, 1, named(client.delta), {"x/values": values[keep], **extras})


def step_of(clients: Sequence[Client], aggregator: Aggregator) -> Tensor:
    """(p,)"""
    step, _ = aggregator.combine({}, [sent(k, client) for k, client in enumerate(clients)])
    return torch.cat([step["a"].flatten(), step["b"]])


def fipa(clients: Sequence[Client], **settings: Any) -> Tensor:
    """The paper's rule, but for the settings."""
    return step_of(clients, Fipa(**{"trust": None, **settings}))


def fedavg(clients: Sequence[Client]) -> Tensor:
    return step_of(clients, Aggregator())


def weights(clients: Sequence[Client]) -> list[float]:
    return [client.num_samples / sum(c.num_samples for c in clients) for client in clients]


def pooled(clients: Sequence[Client]) -> tuple[Tensor, Tensor]:
    """H and b = sum_m w_m H_m delta_m."""
    pairs = list(zip(weights(clients), clients, strict=True))
    zero = torch.zeros(SIZE, dtype=torch.float64)
    return sum((w * c.h for w, c in pairs), torch.diag(zero)), sum((w * (c.h @ c.delta) for w, c in pairs), zero)


def random_clients(num: int, rank: int = 3) -> list[Client]:
    return [Client(low_rank(rank, 10 * k + 1), randn(SIZE, seed=10 * k + 2), k % 4 + 1) for k in range(num)]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((found - expected).norm() <= tolerance * max(1.0, float(expected.norm())))


# --- quadratic clients: f_m(theta) = (theta - t_m)^T H_m (theta - t_m) / 2


START = randn(SIZE, seed=99)


def quadratics(ranks: Sequence[int]) -> tuple[list[Client], list[Tensor]]:
    """Clients with deltas to their own minimisers t_m, and these."""
    optima = [randn(SIZE, seed=7 * k) for k in range(len(ranks))]
    clients = [Client(low_rank(rank, k), optima[k] - START, k + 1) for k, rank in enumerate(ranks)]
    return clients, optima


def test_one_round_from_exact_local_minimisers_is_the_global_optimum() -> None:
    """E15, full rank: sum_m w_m H_m (theta - t_m) = 0. FedAvg's mean of the minimisers is not it."""
    clients, optima = quadratics([SIZE] * 4)
    h, _ = pooled(clients)
    at = [w * (c.h @ t) for w, c, t in zip(weights(clients), clients, optima, strict=True)]
    optimum = torch.linalg.solve(h, torch.stack(at).sum(0))
    assert close(START + fipa(clients), optimum)
    assert not close(START + fedavg(clients), optimum, 0.1)


def test_devices_of_low_rank_that_span_the_space_together_reach_it_too() -> None:
    """Rank 3 each, of 10: no device could alone."""
    clients, _ = quadratics([3] * 6)
    h, b = pooled(clients)
    assert int(torch.linalg.matrix_rank(h)) == SIZE
    assert close(fipa(clients), torch.linalg.solve(h, b), 1e-9)


def test_equal_curvature_of_full_rank_is_fedavg() -> None:
    """E15."""
    clients = [Client(low_rank(SIZE, 0), randn(SIZE, seed=k), k + 1) for k in range(3)]
    assert close(fipa(clients), fedavg(clients))


def test_equal_curvature_of_low_rank_is_fedavg_on_its_range() -> None:
    """E15: U U^T mean; and all of the mean with null_space: fedavg."""
    h = low_rank(4, 0)
    clients = [Client(h, randn(SIZE, seed=k), k + 1) for k in range(3)]
    u = torch.linalg.eigh(h).eigenvectors[:, -4:]
    assert close(fipa(clients), u @ (u.T @ fedavg(clients)))
    assert close(fipa(clients, null_space="fedavg"), fedavg(clients))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("settings", [{}, {"solve": "damped"}, {"null_space": "fedavg"}])
def test_a_common_scale_of_all_curvatures_changes_nothing(scale: float, settings: dict[str, Any]) -> None:
    """E15. The damping is relative."""
    clients = random_clients(3)
    scaled = [Client(scale * c.h, c.delta, c.num_samples) for c in clients]
    assert close(fipa(scaled, **settings), fipa(clients, **settings))


def test_one_device_is_followed_where_it_has_curvature() -> None:
    """E15."""
    (client,) = random_clients(1)
    u = torch.linalg.eigh(client.h).eigenvectors[:, -3:]
    assert close(fipa([client]), u @ (u.T @ client.delta))
    full = Client(low_rank(SIZE, 0), client.delta)
    assert close(fipa([full]), full.delta)


# --- the same through dense matrices


@pytest.mark.parametrize("num", range(1, 11))
def test_the_gram_form_is_the_dense_form(num: int) -> None:
    """E16: pinv(H) b, (H + lam I)^-1 b with lam = damping tr(H) / R, and (I - pinv(H) H) mean on the null space."""
    clients = random_clients(num)
    h, b = pooled(clients)
    inverse = torch.linalg.pinv(h, rtol=1e-5, hermitian=True)
    assert close(fipa(clients), inverse @ b, 1e-9)
    rest = fedavg(clients) - inverse @ (h @ fedavg(clients))
    assert close(fipa(clients, null_space="fedavg"), inverse @ b + rest, 1e-9)
    for damping in (1e-3, 0.01, 1.0):
        lam = damping * torch.trace(h) / (3 * num)
        damped = torch.linalg.solve(h + lam * torch.eye(SIZE, dtype=h.dtype), b)
        assert close(fipa(clients, solve="damped", damping=damping), damped)
        both = fipa(clients, solve="damped", damping=damping, null_space="fedavg")
        assert close(both, damped + rest, 1e-9)


def test_diagonal_curvature_is_a_mean_of_each_entry_weighted_by_it() -> None:
    """sum_m w_m h_m delta_m / sum_m w_m h_m: Fisher merging with F_m = diag(H_m)."""
    clients = [Client(torch.diag(randn(SIZE, seed=k).abs() + 0.1), randn(SIZE, seed=k + 5), k + 1) for k in range(3)]
    h, b = pooled(clients)
    assert close(fipa(clients), b / h.diagonal())


def test_diagonal_fipa_is_fisher_merging() -> None:
    """E24: every H_m diagonal and of full rank, F_k := H_k, and as many tensors as there are."""
    clients = [Client(torch.diag(randn(SIZE, seed=k).abs() + 0.1), randn(SIZE, seed=k + 5), k + 1) for k in range(4)]
    updates = []
    for k, client in enumerate(clients):
        update = sent(k, client)
        fisher = {f"fisher/{name}": value for name, value in named(client.h.diagonal()).items()}
        updates.append(DeviceUpdate(k, client.num_samples, 1, update.delta, fisher))
    merged, _ = FisherMerging(eps=0).combine({}, updates)
    assert close(fipa(clients), torch.cat([merged["a"].flatten(), merged["b"]]))
    one_sided = [Client(c.h + low_rank(1, k), c.delta, c.num_samples) for k, c in enumerate(clients)]
    assert not close(fipa(one_sided), torch.cat([merged["a"].flatten(), merged["b"]]), 0.01)


def test_devices_of_unequal_rank() -> None:
    """One of them has no curvature at all, and yet its weight."""
    clients, _ = quadratics([3, 1, 5])
    clients.append(Client(torch.zeros(SIZE, SIZE, dtype=torch.float64), randn(SIZE), 5))
    h, b = pooled(clients)
    assert close(fipa(clients), torch.linalg.pinv(h, rtol=1e-5, hermitian=True) @ b, 1e-9)


def test_small_damping_tends_to_the_pseudo_inverse_and_large_to_b() -> None:
    """E16: lam -> inf gives b / lam."""
    clients = random_clients(3)
    h, b = pooled(clients)
    assert close(fipa(clients, solve="damped", damping=1e-10), fipa(clients), 1e-7)
    lam = 1e9 * torch.trace(h) / 9
    assert close(lam * fipa(clients, solve="damped", damping=1e9), b, 1e-7)


def test_directions_of_little_curvature_are_left_out_by_rcond() -> None:
    """H = diag(1, 1e-3, 0, ...), one device: the second entry is kept or not."""
    client = Client(torch.diag(torch.tensor([1.0, 1e-3] + [0.0] * 8, dtype=torch.float64)), START)
    for rcond, kept in ((1e-4, 2), (1e-2, 1)):
        expected = START.clone()
        expected[kept:] = 0
        assert close(fipa([client], rcond=rcond), expected)
        assert close(fipa([client], rcond=rcond, null_space="fedavg"), START)


@pytest.mark.parametrize("sizes", [(20, 12, 30), (3, 4, 6)], ids=["enough samples each", "too few each"])
def test_linear_regression_in_one_round_is_that_of_all_data(sizes: tuple[int, ...]) -> None:
    """E16: the pooled normal equations. With too few samples, devices take their least change that fits."""
    x = [randn(n, SIZE, seed=k) for k, n in enumerate(sizes)]
    y = [randn(n, seed=100 + k) for k, n in enumerate(sizes)]
    clients = [
        Client(xk.T @ xk / len(xk), torch.linalg.pinv(xk) @ (yk - xk @ START), len(xk))
        for xk, yk in zip(x, y, strict=True)
    ]
    best = torch.linalg.lstsq(torch.cat(x), torch.cat(y)).solution
    assert close(START + fipa(clients), best, 1e-9)
    assert not close(START + fedavg(clients), best, 0.1)


# --- local training that is not exact


def after_steps(num_steps: int) -> tuple[float, float]:
    """Distance to the global optimum after one round of gradient descent on quadratics: FIPA's and FedAvg's."""
    clients, optima = quadratics([SIZE] * 4)
    h, _ = pooled(clients)
    optimum = START + fipa(clients)
    shrink = [torch.linalg.matrix_power(torch.eye(SIZE) - 0.1 * c.h, num_steps) for c in clients]
    trained = [Client(c.h, c.delta - s @ c.delta, c.num_samples) for c, s in zip(clients, shrink, strict=True)]
    return tuple(float((START + rule(trained) - optimum).norm()) for rule in (fipa, fedavg))  # type: ignore


def test_it_needs_local_training_that_gets_near_the_minimum() -> None:
    """The error falls to 0 with the number of local steps, where FedAvg's stays."""
    found = [after_steps(num) for num in (1, 10, 100, 1000)]
    errors, plateau = zip(*found, strict=True)
    assert list(errors) == sorted(errors, reverse=True) and errors[-1] < 1e-10
    assert plateau[-1] > 0.1 and abs(plateau[-1] - plateau[-2]) < 1e-3


def test_one_local_step_is_not_fedsgd() -> None:
    """E18: delta_m = -eta g_m. Unequal curvature weights the gradients twice over; equal curvature does not."""
    clients, _ = quadratics([SIZE] * 3)
    one_step = [Client(c.h, 0.1 * (c.h @ c.delta), c.num_samples) for c in clients]
    assert not close(fipa(one_step), fedavg(one_step), 0.1)
    alike = [Client(clients[0].h, c.delta, c.num_samples) for c in one_step]
    assert close(fipa(alike), fedavg(alike))


# --- what is ours


AXES = [
    Client(torch.diag(torch.eye(SIZE, dtype=torch.float64)[k]), 2 * torch.eye(SIZE, dtype=torch.float64)[k])
    for k in (0, 1)
]
"""Two devices that each know one axis and go 2 along it: FedAvg goes 1 along both, FIPA 2."""


@pytest.mark.parametrize(
    ("settings", "along"),
    [
        ({}, 2.0),
        ({"rate": 0.25}, 0.5),
        ({"trust": 1.0}, 1.0),
        ({"trust": 1.5}, 1.5),
        ({"trust": 5.0}, 2.0),
        ({"rate": 0.25, "trust": 1.0}, 0.5),
        ({"rate": 3.0, "trust": 1.0}, 1.0),
    ],
)
def test_rate_and_trust_region_by_hand(settings: dict[str, Any], along: float) -> None:
    assert fedavg(AXES)[:2].tolist() == [1.0, 1.0]
    expected = torch.zeros(SIZE, dtype=torch.float64)
    expected[:2] = along
    assert close(fipa(AXES, **settings), expected)


def test_the_trust_region_is_the_norm_of_fedavgs_step() -> None:
    clients = random_clients(6)
    free, cut = fipa(clients), fipa(clients, trust=0.5)
    assert float(free.norm()) > 0.5 * float(fedavg(clients).norm())
    torch.testing.assert_close(cut.norm(), 0.5 * fedavg(clients).norm())
    assert close(cut / cut.norm(), free / free.norm())
    still = [Client(c.h, torch.zeros_like(c.delta), c.num_samples) for c in clients]
    assert not fipa(still, trust=1.0).any()


def test_tensors_without_eigenpairs_take_the_mean() -> None:
    """Bit for bit; each block has its own step and its own trust region."""
    updates = [sent(k, client) for k, client in enumerate(random_clients(3))]
    head = {k: torch.randn(5, generator=rng(k)) for k in range(3)}
    more = [DeviceUpdate(u.device, u.num_samples, 1, {**u.delta, "h": head[u.device]}, u.extras) for u in updates]
    step, _ = Fipa().combine({}, more)
    assert torch.equal(step["h"], Aggregator().combine({}, more)[0]["h"])
    assert digest({n: step[n] for n in "ab"}) == digest(Fipa().combine({}, updates)[0])


@pytest.mark.parametrize("null_space", ["zero", "fedavg"])
def test_without_any_curvature(null_space: Any) -> None:
    clients = [Client(torch.zeros(SIZE, SIZE, dtype=torch.float64), randn(SIZE, seed=k)) for k in range(2)]
    found = fipa(clients, null_space=null_space)
    assert close(found, fedavg(clients)) if null_space == "fedavg" else not found.any()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"damping": 0.1}, "solve: damped"),
        ({"solve": "damped", "rcond": 1e-3}, "solve: pinv"),
        ({"trust": 0.0}, "trust"),
        ({"rank": 0}, "rank"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        Fipa(**settings)
    Fipa(solve="damped", damping=0.1, rcond=1e-3, null_space="fedavg")


# --- on a model


@pytest.fixture(scope="module")
def worker_spec(tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> WorkerSpec:
    folder: Path = tmp_path_factory.mktemp("worker_spec")
    experiment = check(tiny_settings("fedavg"), "test")
    prepared = prepare(experiment, folder)
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())


@pytest.fixture(scope="module")
def shard(worker_spec: WorkerSpec) -> Shard:
    return worker_spec.federation().train_shard(0)


@pytest.fixture
def model(worker_spec: WorkerSpec) -> TorchModel:
    job = worker_spec.job
    return TorchModel(ModelSpec(job.backbone, job.method.peft, job.answers, 0), worker_spec.prepare_base())


def extras_of(aggregator: Fipa, model: TorchModel, shard: Shard, round_: int = 9) -> Tensors:
    return aggregator.extras_before(model, shard, list(model.trainable), round_, rng())


def test_blocks_are_pairs_layers_or_everything(model: TorchModel, shard: Shard) -> None:
    """Query and value in three blocks; each key says which tensors a block has."""
    expected = {"pair": 6, "layer": 3, "all": 2}
    for block, num in expected.items():
        found = extras_of(Fipa(block=block, rank=2), model, shard)
        assert sum(key.endswith("/values") for key in found) == num
        tensors = {key.partition("/vectors/")[2] for key in found} - {""}
        assert tensors == {n for n in model.trainable if block == "all" or model.is_adapter(n)}
    pairs = extras_of(Fipa(block="pair", rank=2), model, shard)
    for key in pairs:
        block, _, name = key.partition("/vectors/")
        assert not name or name.removeprefix(block) in (".lora_A.weight", ".lora_B.weight")


def test_names_that_are_not_shared_are_not_sent(model: TorchModel, shard: Shard) -> None:
    names = [name for name in model.trainable if model.layer_of(name) in (None, 1)]
    found = Fipa(rank=2).extras_before(model, shard, names, 9, rng())
    assert {key.partition("/")[0] for key in found} == {"layer.1"}
    assert Fipa().extras_before(model, shard, ["head.weight"], 9, rng()) == {}


def unanimous(aggregator: Fipa, model: TorchModel, shard: Shard) -> tuple[Tensors, Tensors]:
    """One delta that all devices send, and the step that comes of it."""
    extras = extras_of(aggregator, model, shard)
    delta = {name: torch.randn(value.shape, generator=rng(1)) for name, value in model.trainable.items()}
    updates = [DeviceUpdate(device, 3 + device, 2, delta, extras) for device in range(4)]
    return delta, aggregator.combine({}, updates)[0]


def test_unanimous_devices_are_followed_on_the_range_of_their_curvature(model: TorchModel, shard: Shard) -> None:
    delta, step = unanimous(Fipa(rank=4, trust=None), model, shard)
    extras = extras_of(Fipa(rank=4), model, shard)
    for layer in range(model.num_layers):
        names = [name for name in model.trainable if model.layer_of(name) == layer]
        u = torch.cat([extras[f"layer.{layer}/vectors/{n}"].flatten(0, -2) for n in names])
        mean, found = (torch.cat([tensors[n].flatten() for n in names]) for tensors in (delta, step))
        torch.testing.assert_close(found, u @ (u.T @ mean), rtol=1e-4, atol=1e-5)
    assert torch.equal(step["head.weight"], delta["head.weight"])


def test_at_the_start_of_lora_the_rule_drops_what_a_learned(model: TorchModel, shard: Shard) -> None:
    """E18: B = 0, so A has no curvature: null_space: zero takes nothing of its delta, fedavg all."""
    delta, step = unanimous(Fipa(warmup_rounds=0), model, shard)
    assert all(bool(value.any()) != ("lora_A" in name) for name, value in step.items())
    delta, step = unanimous(Fipa(warmup_rounds=0, null_space="fedavg"), model, shard)
    for name, value in step.items():
        torch.testing.assert_close(value, delta[name])


def test_samples_are_bounded_and_drawn_by_the_generator(model: TorchModel, shard: Shard) -> None:
    """H over s samples has rank s (C - 1) at most."""
    aggregator = Fipa(max_samples=2, rank=50)
    found = [aggregator.extras_before(model, shard, list(model.trainable), 9, rng(seed)) for seed in (0, 0, 1)]
    most = 2 * (model.trainable["head.bias"].numel() - 1)
    assert all(len(found[0][f"layer.{layer}/values"]) <= most for layer in range(3))
    assert digest(found[0]) == digest(found[1]) != digest(found[2])


def test_no_more_eigenpairs_are_asked_for_than_samples_and_classes_can_have() -> None:
    """2 of 9 samples, 3 classes: 4 columns, at most as many as a block has entries; drawn tokens of texts: 2 x 4."""
    shared = {"layers.0.weight": torch.zeros(5, 2), "layers.1.bias": torch.zeros(3)}
    update = DeviceUpdate(0, 9, 1, shared)

    def ranks(answers: Answers, num_samples: int = 9) -> list[int]:
        asked = Asked(5, 0.1, shared, {}, {"layers.0.weight": 0, "layers.1.bias": 1}, (), answers)
        found = Fipa(max_samples=2).expected_extras(asked, replace(update, num_samples=num_samples))
        return [found[f"layer.{layer}/values"].shape[0] for layer in range(2)]

    assert ranks(classes(3)) == [4, 3] and ranks(classes(3), num_samples=1) == [2, 2]
    assert ranks(VALUES) == [2, 2] and ranks(TEXTS) == [8, 3]


def test_all_samples_can_count(model: TorchModel, shard: Shard) -> None:
    """max_samples: null is any number that is large enough."""
    everything = [extras_of(Fipa(max_samples=most, rank=50), model, shard) for most in (None, 10_000)]
    assert digest(everything[0]) == digest(everything[1])


def run(method: dict[str, Any], rounds: int, tiny_settings: Any, folder: Path) -> tuple[list[DeviceReport], LocalFleet]:
    """Reports of the last round."""
    experiment = check(tiny_settings(method, rounds=rounds), "test")
    prepared = prepare(experiment, folder)
    worker_spec = WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())
    fleet = LocalFleet(worker_spec)
    fleet.setup()
    for round_ in range(rounds):
        result = fleet.run_round(plan_round(worker_spec.job, round_))
    return result.reports, fleet


def test_warm_up_rounds_are_fedavgs_bit_for_bit(tiny_settings: Any, tmp_path: Path) -> None:
    """And send no extras; the round after them differs."""
    method = {"name": "x", "aggregator": {"kind": "fipa", "warmup_rounds": 2, "rank": 2}}
    for rounds, same in ((2, True), (3, False)):
        reports, fleet = run(method, rounds, tiny_settings, tmp_path / f"fipa{rounds}")
        _, plain = run({"name": "x"}, rounds, tiny_settings, tmp_path / f"fedavg{rounds}")
        assert (digest(fleet.adapter()) == digest(plain.adapter())) == same
        assert all((report.bytes_up_extras == 0) == same for report in reports)


@pytest.mark.parametrize("block", ["layer", "all"])
def test_eigenpairs_are_counted_as_sent(block: str, tiny_settings: Any, tmp_path: Path) -> None:
    """r (p + 1) floats of 4 bytes for each block."""
    method = {"name": "x", "aggregator": {"kind": "fipa", "warmup_rounds": 0, "rank": 2, "block": block}}
    reports, fleet = run(method, 1, tiny_settings, tmp_path)
    adapter = fleet.adapter()
    size = num_bytes({n: v for n, v in adapter.items() if block == "all" or not n.startswith("head.")})
    num_blocks = {"layer": 3, "all": 2}[block]
    assert [report.bytes_up_extras for report in reports] == [2 * size + 8 * num_blocks] * len(reports)
    assert all(report.bytes_up == report.bytes_up_delta + report.bytes_up_extras for report in reports)
