"""One suite for each axis, over every entry of its registry: what the engine relies on, whatever the part does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import least_cohort
from device_states import stored
from torch import Tensor

from fibec_ray.config.load import check
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.fleets.ray.wire import from_wire, to_wire
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.job import LocalTraining
from fibec_ray.learning.session import LocalSession, Schedule
from fibec_ray.learning.store import StateStore
from fibec_ray.low_rank import MOVED, A, B, pairs
from fibec_ray.model_types import Shard
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.aggregator.feddyn import FedDyn
from fibec_ray.parts.aggregator.fedrpca import FedRpca
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.aggregator.moves_base import FedExLora, FedMomentum
from fibec_ray.parts.aggregator.over_factors import FlexLora, Flora
from fibec_ray.parts.aggregator.same_products import FedSvd
from fibec_ray.parts.aggregator.server_optimisers import Adaptive
from fibec_ray.parts.curriculum import CURRICULA
from fibec_ray.parts.mask import MASKS
from fibec_ray.parts.mask.base import may_move
from fibec_ray.parts.objective import OBJECTIVES
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.peft import PEFTS
from fibec_ray.parts.peft.between import Between
from fibec_ray.parts.privacy import PRIVACIES
from fibec_ray.parts.privacy.base import Exposure
from fibec_ray.parts.sharing import SHARINGS
from fibec_ray.parts.solver import SOLVERS
from fibec_ray.parts.uplink import UPLINKS
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors, add, clone, digest, drop
from fibec_ray.types import DeviceState, DeviceUpdate, LayerReport, Layout

Scan = Callable[[], FisherScan]


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


@pytest.fixture
def scan(model: TorchModel, shard: Shard) -> Scan:
    adapter = [name for name in model.trainable if model.is_adapter(name)]
    return lambda: FisherScan(model, shard, torch.arange(shard.num_samples).split(4), adapter, rng())


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def survives_storage(memory: Tensors, folder: Path) -> bool:
    store = StateStore(folder)
    store.save(0, 0, DeviceState(memory={"axis": memory}))
    return digest(dict(stored(store, 0, before=1).memory.get("axis", {}))) == digest(memory)


OTHER_NAMES = {
    "prompt": "PROMPT_TUNING",
    "prefix": "PREFIX_TUNING",
    "moving_lora": "LORA",
    "sparse_lora": "LORA",
    "delta_lora": "LORA",
    "lora_sb": "LORA",
    "ravan": "LORA",
    "seeded_lora": "LORA",
}
"""Of peft's, for kinds that have another name here."""
IN_OTHER_FACTORS = ("moving_lora", "lora_sb", "ravan")
"""Kinds that save their product in LoRA's factors."""


@pytest.mark.parametrize("kind", PEFTS)
def test_every_peft_adds_trainable_tensors_that_belong_to_blocks(kind: str, worker_spec: WorkerSpec) -> None:
    """They have the names of a saved adapter, and only they and the head can move."""
    part, job = PEFTS[kind](), worker_spec.job
    model = TorchModel(ModelSpec(job.backbone, part, job.answers, 0), worker_spec.prepare_base())
    adapter = {name: value for name, value in model.read().items() if name not in ("head.weight", "head.bias")}
    assert all(model.is_adapter(name) for name in adapter.keys() - set(model.server_only))
    assert set(model.trainable) - set(adapter) == {"head.weight", "head.bias"}
    (saved, _), config = part.saved(adapter, model.adapter_config), model.adapter_config
    if part.trains_base:  # saved in the base's own layout
        assert saved.keys() == adapter.keys() and config["model_type"] == "bert"
    elif "peft_type" in config:
        assert config["peft_type"] == OTHER_NAMES.get(kind, kind.upper())
        theirs = peft.get_peft_model_state_dict(model.peft_model)
        # What is ours alone: SLoRA's first stage, and the moved base, which goes into the factors.
        theirs = {name: value for name, value in theirs.items() if not name.endswith((".sparse", MOVED))}
        theirs = drop(theirs, ["seeds.weight"])
        if isinstance(part, Between):
            assert saved.keys() == {x + side for x in config["sizes"] for side in (A, B)}
        else:
            assert saved.keys() == theirs.keys()
        if kind not in IN_OTHER_FACTORS:
            assert all(torch.equal(saved[name], theirs[name]) for name in theirs)
    else:
        assert config["fibec_ray_peft"] == part.model_dump(mode="json") and saved.keys() == adapter.keys()
    adapter = {name: value for name, value in adapter.items() if model.is_adapter(name)}
    assert adapter and {model.layer_of(name) for name in adapter} <= {None, *range(model.num_layers)}
    assert all(model.layer_of(name) is None for name in set(model.trainable) - set(adapter))


@pytest.mark.parametrize("kind", CURRICULA)
def test_every_curriculum_shows_whole_batches_and_in_the_end_all(kind: str, scan: Scan, tmp_path: Path) -> None:
    curriculum = CURRICULA[kind]()
    batches = list(scan().batches)
    memory = curriculum.prepare(scan(), rng(), 0)
    assert survives_storage(memory, tmp_path)
    assert digest(curriculum.prepare(scan(), rng(), 0)) == digest(memory)
    known = {tuple(rows.tolist()) for rows in batches}
    for round_ in range(10):
        visible = curriculum.visible(memory, batches, round_, 10, rng(round_))
        assert visible and {tuple(rows.tolist()) for rows in visible} <= known
        picked = curriculum.pick(visible, rng(round_))
        assert sorted(map(tuple, map(Tensor.tolist, picked))) == sorted(map(tuple, map(Tensor.tolist, visible)))
    assert len(visible) == len(batches)


@pytest.mark.parametrize("kind", SHARINGS)
def test_every_sharing_rule_treats_a_head_as_one_and_depends_on_reports_alone(
    kind: str, model: TorchModel, shard: Shard
) -> None:
    sharing = SHARINGS[kind]()
    scores = sharing.score(model, shard, rng())
    assert (scores.sensitivity is not None) == sharing.needs_setup
    assert scores.sensitivity is None or scores.sensitivity.shape == (model.num_layers,)
    layers = {name: model.layer_of(name) for name in model.trainable}
    reports = [LayerReport(device, 5 + device, scores) for device in range(3)]
    names = sharing.select(reports, Layout(layers, model.num_layers, {}), rng()).names
    heads = {name for name, layer in layers.items() if layer is None}
    assert names <= set(layers) and names & heads in (set(), heads)
    assert sharing.select(reports, Layout(layers, model.num_layers, {}), rng()).names == names
    assert (names < set(layers)) != ("personal" in sharing.lacks)


@pytest.mark.parametrize("kind", MASKS)
def test_every_mask_says_yes_or_no_for_each_entry_of_personal_tensors(
    kind: str, model: TorchModel, shard: Shard, scan: Scan, tmp_path: Path
) -> None:
    mask, session = MASKS[kind](), session_of(model, shard)
    personal = [name for name in model.trainable if model.layer_of(name) == 0]
    started = mask.warm_up(mask.prepare(scan(), rng()), session, 0.01)
    memory = mask.refresh(started, scan(), personal, rng())
    assert survives_storage(memory, tmp_path)
    keep = may_move(memory, personal)
    assert set(keep) in (set(), set(personal)) and bool(keep) == ("personal" in mask.needs)
    for name, entries in keep.items():
        assert entries.dtype == torch.bool and entries.shape == model.trainable[name].shape


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_adds_nothing_where_training_starts(kind: str, model: TorchModel) -> None:
    objective = OBJECTIVES[kind]()
    params = dict(model.trainable)
    penalty = objective.penalty(params, clone(params))
    assert penalty is None or (penalty.ndim == 0 and float(penalty.detach()) == 0)
    assert not objective.teachers(clone(params), {})
    if type(objective).feature_penalty is not Objective.feature_penalty:
        seen = torch.randn(4, 7, generator=rng(), dtype=torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad(objective.feature_penalty(seen, [seen.detach()] * 2), seen)
        assert slope.abs().max() < 1e-12
    assert torch.equal(objective.weigh(torch.full((3,), 0.1)), torch.ones(3)), "low losses count in full"
    assert ("gradients" in objective.lacks) == (kind in ("moon", "self_evolution"))
    assert isinstance(objective.remember({}, clone(params)), dict)
    memory, extras = objective.finish({}, {}, clone(params), num_steps=3, lr=0.1)
    assert isinstance(memory, dict) and isinstance(extras, dict)
    assert isinstance(objective.absorb(clone(params), objective.absorb(clone(params), {}, (), 1), [extras], 1), dict)


def session_of(model: TorchModel, shard: Shard) -> LocalSession:
    """Of a device that does not start where the run did, with a personal head."""
    initial = model.read()
    received = {name: value + 0.01 for name, value in initial.items()}
    model.load(received)
    shared = frozenset(name for name in initial if model.is_adapter(name))
    batches = list(torch.arange(shard.num_samples).split(4))
    schedule = Schedule(lambda epochs: batches * len(epochs), LocalTraining(), 0.01, 0, ("dropout", 0, 0))
    return LocalSession(model, shard, schedule, initial, received, shared)


@pytest.mark.parametrize("kind", SOLVERS)
def test_every_solver_leaves_a_model_and_a_memory_that_can_be_had_again(
    kind: str, model: TorchModel, shard: Shard, tmp_path: Path
) -> None:
    """What it was lent is as before; the log's steps are those that moved what is shared."""
    solver = SOLVERS[kind]()
    session = session_of(model, shard)
    lent = digest(session.initial), digest(session.received)
    found = []
    for _ in range(2):
        session = replace(session, _done=[], _counted=[])
        model.load(session.received)
        found.append((solver.solve(session, {}), model.read()))
    assert (digest(session.initial), digest(session.received)) == lent
    assert digest(found[0][0]) == digest(found[1][0]) and digest(found[0][1]) == digest(found[1][1])
    assert survives_storage(found[0][0], tmp_path)
    moved = [name for name in session.shared if not torch.equal(found[0][1][name], session.received[name])]
    assert bool(moved) == bool(session.trained.num_steps) == (session.trained.mean_loss is not None)


@pytest.mark.parametrize("kind", SOLVERS)
def test_every_solver_says_whether_devices_have_models_of_their_own(kind: str, model: TorchModel, shard: Shard) -> None:
    """One that took part has: other values than its shared and personal ones, or these are tuned before evaluation."""
    solver = SOLVERS[kind]()
    session = session_of(model, shard)
    memory = solver.solve(session, {})
    after = model.read()
    own = solver.own(memory)
    assert solver.own({}) == {} and own.keys() <= after.keys()
    model.load(after | own)
    solver.tune(session)
    mixes = solver.num_references > 0  # for each sample
    assert (digest(model.read()) != digest(after) or mixes) == solver.has_own_model


@pytest.mark.parametrize("kind", UPLINKS)
def test_every_uplink_sends_what_it_declares_and_gives_it_back_in_form(
    kind: str, model: TorchModel, tmp_path: Path
) -> None:
    """It may lose some of the values, but no name, shape or type; and it keeps what was lent as it is."""
    uplink, like = UPLINKS[kind](), model.read()
    delta = {name: torch.randn(value.shape, generator=rng(1)) for name, value in like.items()}
    for values in (delta, {name: torch.zeros_like(value) for name, value in delta.items()}):
        before = digest(values)
        payload, memory = uplink.encode(values, {}, rng())
        again, _ = uplink.encode(values, {}, rng())
        assert digest(payload) == digest(again) and digest(values) == before and survives_storage(memory, tmp_path)
        if uplink.encodes:
            declared = {name: (one.shape, one.dtype) for name, one in uplink.expected_payload(values).items()}
            assert {name: (tuple(value.shape), value.dtype) for name, value in payload.items()} == declared
        arrived = from_wire(to_wire(payload))
        assert uplink.fault(arrived, values) is None
        found = uplink.decode(arrived, values)
        assert {n: (v.shape, v.dtype) for n, v in found.items()} == {n: (v.shape, v.dtype) for n, v in values.items()}
        assert all(value.isfinite().all() for value in found.values())
        assert all(value.any() == values[name].any() or "dense" in uplink.lacks for name, value in found.items())
    down = uplink.encode_down(like)
    assert uplink.encodes_down or digest(down) == digest(like)
    assert {n: v.shape for n, v in uplink.decode_down(down, like).items()} == {n: v.shape for n, v in like.items()}


@pytest.mark.parametrize("kind", PRIVACIES)
def test_every_privacy_rule_keeps_names_and_shapes_and_shows_an_aggregator_what_it_knows(
    kind: str, model: TorchModel, tmp_path: Path
) -> None:
    """The same bits from the same generator; what was lent is as before; where nothing is added, nothing changes."""
    pytest.importorskip("dp_accounting", reason="epsilon is computed by dp-accounting")
    exposure = Exposure(3, 6, 3, "fixed", lambda rounds: rounds)
    part, like = PRIVACIES[kind]().calibrated(exposure), model.read()
    delta = {name: torch.randn(value.shape, generator=rng(1)) for name, value in like.items()}
    before, state = digest(delta), part.start()
    sent, extras = part.protect(delta, part.sent(state), 3, rng())
    again, _ = part.protect(delta, part.sent(state), 3, rng())
    assert digest(sent) == digest(again) and digest(delta) == before and extras.keys() == part.expected_extras().keys()
    assert {n: (v.shape, v.dtype) for n, v in sent.items()} == {n: (v.shape, v.dtype) for n, v in like.items()}
    updates = [DeviceUpdate(device, 3 + device, 2, sent, extras) for device in range(3)]
    shown, after = part.release(state, updates, like, 3, rng())
    step = Mean().combine({}, shown)[0]
    assert survives_storage(after, tmp_path) and {n: v.shape for n, v in step.items()} == {
        n: v.shape for n, v in like.items()
    }
    epsilons = [part.epsilon(exposure, rounds) for rounds in (1, 3)]
    assert (None in epsilons) == (not part.guarantee(exposure)) == (kind == "none")
    if kind == "none":
        assert part.guard() is None and all(torch.allclose(step[name], value) for name, value in delta.items())
    else:
        assert epsilons[0] < epsilons[1]  # type: ignore[operator]


EVERYWHERE = {"fipa": {"null_space": "fedavg"}}
"""Settings under which an aggregator that moves along some directions alone moves along all."""


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_every_aggregator_goes_where_unanimous_devices_go(
    kind: str, model: TorchModel, shard: Shard, tmp_path: Path
) -> None:
    """As far as they do, unless its rule sets another length; and no entry against them."""
    aggregator = AGGREGATORS[kind].model_validate(EVERYWHERE.get(kind, {}))
    shared = model.read()
    if aggregator.usual_partners().get("peft") == "moving_lora":
        shared |= {x + MOVED: torch.zeros(len(shared[x + B]), shared[x + A].shape[1]) for x in pairs(shared)}
    names, batches = [name for name in shared if not name.endswith(MOVED)], torch.arange(shard.num_samples).split(4)
    delta = {name: torch.randn(shared[name].shape, generator=rng(1)) for name in names}
    extras = aggregator.extras_before(model, shard, names, 9, rng())  # after any warm-up
    extras |= aggregator.extras_after(model, shard, names, batches, rng())
    updates = [DeviceUpdate(device, 3 + device, 2, delta, extras) for device in range(max(4, least_cohort(aggregator)))]
    state = aggregator.start(shared, 20)
    step, after = aggregator.combine(state, updates)
    assert survives_storage(state, tmp_path / "before") and survives_storage(after, tmp_path / "after")
    if isinstance(aggregator, Flora | FlexLora | FedExLora | FedMomentum | FedSvd):
        # What they average is the product; which factors have it is theirs to choose.
        for x in pairs(shared):
            got, wanted = shared | add(step, shared), add(delta, shared)
            product = got[x + B] @ got[x + A] + step.get(x + MOVED, 0)
            torch.testing.assert_close(product, wanted[x + B] @ wanted[x + A], rtol=1e-4, atol=1e-5)
        return
    assert step.keys() == shared.keys()
    for name, value in step.items():
        assert torch.equal(value.sign(), delta[name].sign())
        if not isinstance(aggregator, Adaptive | FedDyn | FedRpca):
            torch.testing.assert_close(value, delta[name])
    assert aggregator.combine(state, []) == ({}, state)
