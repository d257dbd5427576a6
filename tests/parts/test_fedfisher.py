"""FedFisher (E15): against dense algebra where the optimum is known; its factors against exact Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BERT, classes, shard_of
from torch import Tensor, nn

from fibec_ray.config.load import check
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.curvature.kfac import Factors, kronecker_factors
from fibec_ray.errors import ModelError
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.likelihoods import Label
from fibec_ray.model_types import Batch, Outputs, Work
from fibec_ray.models.alone import Alone
from fibec_ray.models.backbone import prepare as prepare_base
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.aggregator.fedfisher import FedFisher, symmetric, upper
from fibec_ray.parts.aggregator.fisher_merging import FisherMerging
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import digest, num_bytes
from fibec_ray.types import Broadcast, DeviceUpdate, RoundPlan

OUT, IN = 3, 4
"""of a Linear with a bias: its factors are (3, 3) and (5, 5)"""
EXACT: dict[str, Any] = {"damping": 0, "iterations": 500, "tolerance": 1e-13}


@dataclass(frozen=True)
class Client:
    g: Tensor
    a: Tensor
    delta: Tensor
    """(OUT, IN + 1), the bias last"""
    num_samples: int = 1

    @property
    def h(self) -> Tensor:
        """(p, p) curvature of vec(delta), columns stacked."""
        return torch.kron(self.a, self.g)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def psd(size: int, seed: int, rank: int | None = None) -> Tensor:
    """Eigenvalues from 1 to 3 on its range."""
    u = torch.linalg.qr(randn(size, rank or size, seed=seed)).Q
    return u * torch.linspace(1, 3, rank or size, dtype=torch.float64) @ u.T


def clients(count: int, ranks: tuple[int, int] = (OUT, IN + 1)) -> list[Client]:
    return [
        Client(psd(OUT, k, ranks[0]), psd(IN + 1, 50 + k, ranks[1]), randn(OUT, IN + 1, seed=100 + k), k + 1)
        for k in range(count)
    ]


def update(device: int, client: Client) -> DeviceUpdate:
    extras = {"inputs/m": upper(client.a), "outputs/m": upper(client.g)}
    delta = {"m.weight": client.delta[:, :IN], "m.bias": client.delta[:, IN]}
    return DeviceUpdate(device, client.num_samples, 1, delta, extras)


def fitted(cohort: Sequence[Client], **settings: Any) -> Tensor:
    """(OUT, IN + 1)."""
    step, state = FedFisher(**settings).combine({}, iter([update(k, client) for k, client in enumerate(cohort)]))
    assert state == {} and list(step) == ["m.weight", "m.bias"]
    return torch.cat([step["m.weight"], step["m.bias"].unsqueeze(1)], 1)


def weights(cohort: Sequence[Client]) -> list[float]:
    return [client.num_samples / sum(c.num_samples for c in cohort) for client in cohort]


def fedavg(cohort: Sequence[Client]) -> Tensor:
    return torch.stack([w * c.delta for w, c in zip(weights(cohort), cohort, strict=True)]).sum(0)


def vec(x: Tensor) -> Tensor:
    return x.T.flatten()


def dense(cohort: Sequence[Client], damping: float = 0.0) -> tuple[Tensor, Tensor]:
    """H = sum_k w_k H_k + d I and its right-hand side, with d M in it."""
    h = torch.stack([w * c.h for w, c in zip(weights(cohort), cohort, strict=True)]).sum(0)
    d = damping * h.diagonal().mean()
    b = torch.stack([w * c.h @ vec(c.delta) for w, c in zip(weights(cohort), cohort, strict=True)]).sum(0)
    return h + d * torch.eye(len(h), dtype=h.dtype), b + d * vec(fedavg(cohort))


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


# --- the server


def test_exact_local_solves_of_kronecker_quadratics_give_the_global_optimum() -> None:
    """E15: sum_k w_k G_k (theta - t_k) A_k = 0, whatever theta_0 the devices started from. FedAvg's mean is not it."""
    start = randn(OUT, IN + 1, seed=7)
    cohort = clients(4)
    optima = [start + client.delta for client in cohort]
    found = start + fitted(cohort, **EXACT)
    gradient = [
        w * c.g @ (found - t) @ c.a for w, c, t in zip(weights(cohort), cohort, optima, strict=True)
    ]  # fmt: skip
    assert float(torch.stack(gradient).sum(0).norm()) < 1e-10
    assert close(vec(found - start), torch.linalg.solve(*dense(cohort)))
    assert not close(fitted(cohort, **EXACT), fedavg(cohort), 0.1)


def test_damping_has_the_weight_of_fedavg_s_step() -> None:
    """In units of the mean of the diagonal; without bound it is FedAvg."""
    cohort = clients(3)
    settings = {**EXACT, "damping": 0.3}
    assert close(vec(fitted(cohort, **settings)), torch.linalg.solve(*dense(cohort, 0.3)))
    assert close(fitted(cohort, damping=1e12), fedavg(cohort))


def test_one_device_gives_its_delta() -> None:
    for ranks in ((OUT, IN + 1), (1, 2)):
        (client,) = clients(1, ranks)
        assert torch.equal(fitted([client]), client.delta) and torch.equal(fitted([client], **EXACT), client.delta)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_equal_factors_are_fedavg(scale: float) -> None:
    first, *others = clients(4)
    equal = [Client(scale * first.g, first.a, c.delta, c.num_samples) for c in (first, *others)]
    assert close(fitted(equal), fedavg(equal), 1e-14)


def test_a_common_scale_of_all_factors_changes_nothing() -> None:
    cohort = clients(3)
    scaled = [Client(1e-8 * c.g, c.a, c.delta, c.num_samples) for c in cohort]
    assert close(fitted(scaled), fitted(cohort))


def test_without_curvature_it_is_fedavg() -> None:
    """With zero factors, everywhere; in directions that no factor covers, only there."""
    blind = [Client(0 * c.g, c.a, c.delta, c.num_samples) for c in clients(3)]
    for settings in ({}, EXACT):
        assert torch.equal(fitted(blind, **settings), fedavg(blind))
    u = torch.linalg.qr(randn(OUT, OUT, seed=3)).Q
    seen = [Client(psd_in(u[:, :2], k), c.a, c.delta, c.num_samples) for k, c in enumerate(clients(3))]
    assert close(u[:, 2] @ fitted(seen, **EXACT), u[:, 2] @ fedavg(seen))
    assert not close(u[:, 0] @ fitted(seen, **EXACT), u[:, 0] @ fedavg(seen), 0.1)


def psd_in(basis: Tensor, seed: int) -> Tensor:
    return basis @ psd(basis.shape[1], seed) @ basis.T


def test_the_order_of_devices_means_nothing() -> None:
    cohort = clients(4)
    assert close(fitted(cohort[::-1]), fitted(cohort), 1e-13)


def test_more_iterations_come_closer() -> None:
    cohort = clients(4, (2, 2))
    h, b = dense(cohort, 1e-3)
    errors = [
        float((vec(fitted(cohort, damping=1e-3, iterations=n, tolerance=1e-14)) - torch.linalg.solve(h, b)).norm())
        for n in (1, 4, 60)
    ]
    assert errors[0] > errors[1] > errors[2] < 1e-8


def test_tensors_without_factors_are_merged_by_their_diagonals() -> None:
    """As in Fisher merging; a tensor without information takes the mean."""
    updates = [
        DeviceUpdate(
            k, k + 1, 1, {"l": randn(4, seed=k), "u": randn(2, seed=9 + k)}, {"fisher/l": randn(4, seed=k).exp()}
        )
        for k in range(3)
    ]
    step, _ = FedFisher(damping=0.1).combine({}, updates)
    other = [DeviceUpdate(u.device, u.num_samples, 1, {"l": u.delta["l"]}, u.extras) for u in updates]
    expected, _ = FisherMerging(eps=0.1).combine({}, other)
    torch.testing.assert_close(step["l"], expected["l"])
    mean = torch.stack([(k + 1) / 6 * updates[k].delta["u"] for k in range(3)]).sum(0)
    torch.testing.assert_close(step["u"], mean)


def test_a_triangle_is_the_matrix() -> None:
    matrix = psd(5, 1)
    matrix = (matrix + matrix.T) / 2
    assert upper(matrix).shape == (15,) and torch.equal(symmetric(upper(matrix)), matrix)
    assert symmetric(upper(matrix[:1, :1])).shape == (1, 1)


# --- the factors


class Softmax(Alone):
    """Scores W x with x the token ids: a small model that implements what `LocalModel` asks of a measured model."""

    def __init__(self, weight: Tensor):
        linear = nn.Linear(weight.shape[1], len(weight))
        linear.weight.data.copy_(weight)
        nn.init.zeros_(linear.bias)
        self.holders: dict[str, nn.Module] = {"m": linear}
        self.trainable: dict[str, nn.Parameter] = {"m.weight": linear.weight, "m.bias": linear.bias}
        self.linear, self.work = linear, Work()

    def is_adapter(self, name: str) -> bool:
        return True

    def train(self, mode: bool) -> None:
        """No dropout."""

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        scores = self.linear(batch.inputs["input_ids"].float())
        self.work.flops += 2 * scores.numel()  # a forward and a backward pass
        return Outputs(nn.functional.cross_entropy(scores, batch.labels, reduction="none"), scores)


X = [[1, 2], [3, 1], [2, 0], [0, 1]]
W = torch.tensor([[0.4, -0.2], [0.1, 0.3], [-0.5, 0.2]])


def softmax_factors(weight: Tensor, rows: list[int], group_size: int = 4, label: Label = "expected") -> Factors:
    model, shard = Softmax(weight), shard_of(X, [0, 1, 2, 0])
    return kronecker_factors(model, shard, torch.tensor(rows), list(model.trainable), label, group_size, rng())  # type: ignore[arg-type]


def exact(weight: Tensor, rows: list[int]) -> Tensor:
    """(p, p): mean over samples and expected labels of g g^T, g = vec((p - onehot) [x, 1]^T)."""
    total = torch.zeros(9, 9)
    for row in rows:
        a = torch.tensor([*X[row], 1.0])
        p = (weight @ a[:2]).softmax(0)
        for c in range(3):
            e = p - nn.functional.one_hot(torch.tensor(c), 3)
            g = torch.outer(e, a).T.flatten()
            total += p[c] * torch.outer(g, g) / len(rows)
    return total


@pytest.mark.parametrize(("weight", "rows"), [(W, [1]), (0 * W, [0, 1, 2, 3])], ids=["one sample", "all alike"])
def test_the_factors_of_a_linear_softmax_are_its_fisher_information(weight: Tensor, rows: list[int]) -> None:
    """Where a product is exact: for one sample; and for several whose classes are equally likely."""
    found = softmax_factors(weight, rows)
    assert found.inputs["m"].shape == found.outputs["m"].shape == (3, 3) and not found.diagonal
    torch.testing.assert_close(torch.kron(found.inputs["m"], found.outputs["m"]), exact(weight, rows))


def test_elsewhere_they_are_means_over_samples() -> None:
    found = softmax_factors(W, [0, 1, 2, 3])
    a = torch.tensor([[*x, 1.0] for x in X])
    p = (a[:, :2] @ W.T).softmax(1)
    torch.testing.assert_close(found.inputs["m"], a.T @ a / 4)
    torch.testing.assert_close(found.outputs["m"], (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)).mean(0))


def transformer() -> TorchModel:
    backbone = Backbone(init="random", config={**TINY_BERT, "vocab_size": 60}, tokenizer="minilm")
    model = TorchModel(ModelSpec(backbone, Lora(r=4), classes(3), 0), prepare_base(backbone, 0, 3, cache_dir()))
    model.load({n: 0.1 * torch.randn(p.shape, generator=rng(1)) for n, p in model.trainable.items() if "lora_B" in n})
    return model


@pytest.mark.parametrize("label", ["expected", "observed", "sampled"])
def test_of_one_token_the_diagonal_of_the_product_is_the_scan_s(label: Label) -> None:
    """In a transformer: two ways to the same numbers, at each LoRA matrix and the head."""
    model, shard = transformer(), shard_of([[7]], [1])
    found = kronecker_factors(model, shard, torch.tensor([0]), list(model.trainable), label, 4, rng())
    scan = FisherScan(model, shard, [torch.tensor([0])], list(model.trainable), rng()).read(label, "all").diagonal
    assert found.inputs.keys() == model.holders.keys() and len(found.inputs) == 13
    for prefix in found.inputs:
        diagonal = torch.outer(found.outputs[prefix].diagonal(), found.inputs[prefix].diagonal())
        names = [name for name in (f"{prefix}.weight", f"{prefix}.bias") if name in scan]
        expected = torch.cat([scan[name].view(len(scan[name]), -1) for name in names], 1)
        torch.testing.assert_close(diagonal, expected, rtol=1e-4, atol=1e-12)


def test_padding_and_groups_change_no_factor() -> None:
    """Samples alone, as a padded batch, and as the sum by hand of tokens; G sums over tokens, A is their mean."""
    model, shard = transformer(), shard_of([[3, 9, 4], [5, 2], [8, 7, 6, 1], [4]], [0, 1, 0, 1])
    names = list(model.trainable)
    rows = torch.arange(4)
    whole, alone = (kronecker_factors(model, shard, rows, names, "expected", size, rng()) for size in (4, 1))
    each = [kronecker_factors(model, shard, rows[i : i + 1], names, "expected", 1, rng()) for i in range(4)]
    lengths = shard.lengths.float()
    for prefix in whole.inputs:
        tokens = torch.ones(4) if prefix == "head" else lengths  # the head sees one mean for each sample
        a = torch.stack([n * one.inputs[prefix] for n, one in zip(tokens, each, strict=True)]).sum(0) / tokens.sum()
        g = torch.stack([one.outputs[prefix] for one in each]).mean(0)
        for found in (whole, alone):
            torch.testing.assert_close(found.inputs[prefix], a, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(found.outputs[prefix], g, rtol=1e-4, atol=1e-9)


# --- what a device sends


def spec_of(tiny_settings: Any, folder: Path, peft: Any = "lora", **settings: Any) -> WorkerSpec:
    method = {"name": "fedfisher", "peft": peft, "aggregator": {"kind": "fedfisher", **settings}}
    experiment = check(tiny_settings(method), "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())


def sent(worker_spec: WorkerSpec) -> Any:
    worker = worker_spec.worker()
    return worker, *worker.train(RoundPlan(0, 3, (2,), 0.01), 2, Broadcast(0, worker.initial))


def test_a_device_sends_triangles_of_its_factors_where_training_ended(tiny_settings: Any, tmp_path: Path) -> None:
    """Of all of its samples, here. 32 features and rank 8 or 6 classes; each byte is counted."""
    worker_spec = spec_of(tiny_settings, tmp_path / "run", max_samples=None)
    worker, update, report = sent(worker_spec)
    shard = worker_spec.federation().train_shard(2)
    names, rows = list(worker.initial), torch.cat(worker.batches(2))
    expected = kronecker_factors(worker.model, shard, rows, names, "expected", 4, rng())
    for axis, factors in (("inputs", expected.inputs), ("outputs", expected.outputs)):
        for prefix, value in factors.items():
            torch.testing.assert_close(update.extras[f"{axis}/{prefix}"], upper(value), rtol=1e-3, atol=1e-9)
    numbers = 12 * (32 * 33 // 2 + 8 * 9 // 2) + 33 * 34 // 2 + 6 * 7 // 2
    assert report.bytes_up_extras == num_bytes(update.extras) == 4 * numbers


def test_some_samples_cost_less_and_are_drawn_by_seed(tiny_settings: Any, tmp_path: Path) -> None:
    found = {}
    for name, most in (("few", 2), ("again", 2), ("all", None)):
        _, update, report = sent(spec_of(tiny_settings, tmp_path / name, max_samples=most))
        found[name] = digest(update.extras), report.flops
    assert found["few"] == found["again"] and found["few"][0] != found["all"][0] and found["few"][1] < found["all"][1]


def test_modules_that_are_no_linear_send_their_diagonal(tiny_settings: Any, tmp_path: Path) -> None:
    worker, update, _ = sent(spec_of(tiny_settings, tmp_path / "run", "ia3"))
    scaled = [name for name in worker.initial if name.endswith("ia3_l")]
    assert scaled and {f"fisher/{name}" for name in scaled} | {"inputs/head", "outputs/head"} == update.extras.keys()
    assert all(update.extras[f"fisher/{name}"].shape == worker.initial[name].shape for name in scaled)


def test_adapters_of_unknown_gradients_are_refused(tiny_settings: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="lora_magnitude_vector.*its per-sample gradients are not known"):
        sent(spec_of(tiny_settings, tmp_path / "run", {"kind": "lora", "use_dora": True}))


def test_with_nothing_shared_nothing_is_measured(tiny_settings: Any, tmp_path: Path) -> None:
    worker_spec = spec_of(tiny_settings, tmp_path / "run")
    worker, shard = worker_spec.worker(), worker_spec.federation().train_shard(0)
    assert FedFisher().extras_after(worker.model, shard, [], worker.batches(0), rng()) == {}
    assert FedFisher().combine({}, [DeviceUpdate(0, 1, 1, {})])[0] == FedFisher().combine({}, [])[0] == {}
