"""fibecfed-authors against a plain loop, written from what a co-author's code of FibecFed does. Without dropout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_LLAMA, after_rounds, named
from device_states import stored
from torch import Tensor

from fibec_ray import seeds
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.job import Job
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.store import StateStore
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.tensors import Tensors

ROUNDS, RATE, NUM_SHARED = 5, 0.003, 2
B, A = ".lora_B.weight", ".lora_A.weight"


def train(model: LocalModel, shard: Shard, batches: Sequence[Tensor], frozen: Mapping[str, Tensor]) -> None:
    """AdamW without weight decay at a constant rate, gradients clipped at 1. frozen: rows of B that stay."""
    params = dict(model.trainable)
    optimizer = torch.optim.AdamW(params.values(), lr=RATE, weight_decay=0)
    for rows in batches:
        grads = torch.autograd.grad(model.forward(shard.batch(rows)).losses.mean(), list(params.values()))
        for (name, param), grad in zip(params.items(), grads, strict=True):
            param.grad = grad * ~frozen[name].unsqueeze(1) if name in frozen else grad
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()


def order_of(model: LocalModel, shard: Shard, batches: Sequence[Tensor]) -> list[int]:
    """The batches by the mean squared norm of their samples' gradients, easiest first."""

    def trace(row: Tensor) -> float:
        losses = model.forward(shard.batch(row.view(1))).losses
        return sum(float(g.square().sum()) for g in torch.autograd.grad(losses.sum(), list(model.trainable.values())))

    difficulties = [sum(map(trace, rows)) / len(rows) for rows in batches]
    return sorted(range(len(batches)), key=difficulties.__getitem__)


def changes_of(model: LocalModel, shard: Shard, rows: Tensor) -> Tensor:
    """(L,) relative change of the norm of the answers' states (10, H) under one noise of norm .5 for the batch."""
    batch = shard.batch(rows)
    embeds = model.embed(batch).detach().requires_grad_()
    clean = model.forward(batch, embeds=embeds, hidden=True)
    (grads,) = torch.autograd.grad(clean.losses.mean(), embeds)
    noisy = model.forward(batch, embeds=(embeds + 0.5 * grads / grads.norm()).detach(), hidden=True)
    at = torch.arange(len(rows)), batch.inputs["answer_at"]
    pairs = zip(clean.hidden, noisy.hidden, strict=True)
    norms = [(float(one[at].detach().norm()), float(two[at].detach().norm())) for one, two in pairs]
    return torch.tensor([abs(two - one) / one for one, two in norms])


def warmed(model: LocalModel, shard: Shard, batches: Sequence[Tensor]) -> Tensors:
    """Scores of the rows of B A after three epochs: the mean of (change / rate)^2 over the inputs, momentum .5."""
    pairs, scores = [name.removesuffix(B) for name in model.trainable if name.endswith(B)], Tensors()
    product = {x: (model.trainable[x + B] @ model.trainable[x + A]).detach() for x in pairs}
    for _ in range(3):
        train(model, shard, batches, {})
        for x in pairs:
            after = (model.trainable[x + B] @ model.trainable[x + A]).detach()
            latest = ((after - product[x]) / RATE).square().mean(1)
            scores[x + B], product[x] = 0.5 * scores.get(x + B, latest) + 0.5 * latest, after
    return scores


def frozen_rows(scores: Tensors) -> Tensors:
    """The 5 % of rows with the lowest scores, over all personal layers together; rounded so that most stay."""
    joined = torch.cat(list(scores.values()))
    lowest = torch.ones_like(joined, dtype=torch.bool)
    lowest[joined.argsort(descending=True)[: math.ceil(0.95 * len(joined))]] = False
    return dict(zip(scores, lowest.split([len(value) for value in scores.values()]), strict=True))


def loop(model: LocalModel, job: Job, data: Federation) -> tuple[Tensors, dict[int, Tensors], Tensor]:
    """The server's tensors, the devices' own ones, and the average scores of the layers (L,)."""
    initial, devices, batches = model.read(), range(data.num_devices), dict[int, Sequence[Tensor]]()
    orders, changes, rows_scored, own = dict[int, list[int]](), [], [], dict[int, Tensors]()
    for k in devices:
        shard, size = data.train_shard(k), len(data.train_rows[k])
        batches[k] = torch.randperm(size, generator=seeds.generator(job.seed, "batches", k)).split(job.local.batch_size)
        model.load(initial)
        orders[k] = order_of(model, shard, batches[k])
        drawn = torch.randperm(size, generator=seeds.generator(job.seed, "sensitivity", k))[:10]
        changes.append(changes_of(model, shard, drawn))
        rows_scored.append(warmed(model, shard, batches[k]))
    scores = torch.stack(changes).mean(0)
    least = scores.argsort()[:NUM_SHARED].tolist()
    shared = {name: value for name, value in initial.items() if model.layer_of(name) in least}
    personal = {name: value for name, value in initial.items() if name not in shared}
    frozen = [frozen_rows({name: of[name] for name in personal if name in of}) for of in rows_scored]
    for t in range(ROUNDS):
        share, sent, cohort = min(1, 0.6 + 0.4 * t / (0.8 * ROUNDS)), [], plan_round(job, t).cohort
        for k in cohort:
            model.load(initial | shared | own.get(k, {}))
            last = math.ceil(share * len(batches[k]) - 1e-9)  # shown too
            shown = [batches[k][i] for i in orders[k][: last + 1]]
            train(model, data.train_shard(k), shown * 2, frozen[k])
            trained = model.read()
            own[k] = {name: trained[name] for name in personal}
            sent.append((len(batches[k]), trained))
        total = sum(weight for weight, _ in sent)
        shared = {n: sum((w / total) * value[n].double() for w, value in sent).float() for n in shared}  # type: ignore
    return shared, own, scores


@pytest.mark.slow
def test_a_run_equals_the_loop(tiny_settings: Any, tmp_path: Path) -> None:
    method = named("methods", "fibecfed-authors")
    method["peft"]["dropout"], method["curriculum"]["dropout"], method["sharing"]["fraction"] = 0, False, 2 / 3
    backbone = {"config": {**TINY_LLAMA, "hidden_size": 16, "intermediate_size": 32}, "head": "causal_lm"}
    local = {"learning_rate": RATE, "schedule": "constant", "weight_decay": 0, "epochs": 2}
    data = {"max_length": 24, "synthetic": {"num_train": 36, "num_test": 6}}
    size = {"rounds": ROUNDS, "num_devices": 3, "cohort_size": 2}
    settings = tiny_settings(method, **size, backbone=backbone, local=local, data=data)
    fleet, worker_spec, _ = after_rounds(ROUNDS, settings, tmp_path)
    shared, own, scores = loop(fleet._worker_spec.worker().model, worker_spec.job, worker_spec.federation())
    assert fleet._opened.layer_scores is not None and fleet._opened.shared_names == shared.keys()
    torch.testing.assert_close(fleet._opened.layer_scores, scores, rtol=1e-4, atol=1e-7)
    found = fleet.adapter()
    moved = [name for name in shared if not torch.equal(found[name], fleet._worker.initial[name])]
    assert len(moved) == len(shared)
    for name, value in shared.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    for k, values in own.items():
        state = stored(StateStore(worker_spec.state_dir), k, before=ROUNDS)
        for name, value in values.items():
            torch.testing.assert_close(state.personal[name], value, rtol=0, atol=1e-6)
