"""One suite for each axis, over every entry of its registry: what the engine relies on, whatever the part does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from fibec_ray.config.load import check
from fibec_ray.fisher import FisherScan
from fibec_ray.fleets.site import Site
from fibec_ray.learning.store import StateStore
from fibec_ray.models.torch_model import TorchModel
from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.aggregator.feddyn import FedDyn
from fibec_ray.parts.aggregator.server_optimisers import Adaptive
from fibec_ray.parts.curriculum import CURRICULA
from fibec_ray.parts.mask import MASKS
from fibec_ray.parts.objective import OBJECTIVES
from fibec_ray.parts.peft import PEFTS
from fibec_ray.parts.sharing import SHARINGS
from fibec_ray.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors, clone, digest
from fibec_ray.types import ClientUpdate, DeviceState, LayerReport, Layout, Shard

Scan = Callable[[], FisherScan]


@pytest.fixture(scope="module")
def site(tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder: Path = tmp_path_factory.mktemp("site")
    experiment = check(tiny_settings("fedavg"), "test")
    prepared = prepare(experiment, folder)
    return Site(experiment.job(prepared.num_classes, None), folder, cache_dir(), 1)


@pytest.fixture(scope="module")
def shard(site: Site) -> Shard:
    return site.federation().train_shard(0)


@pytest.fixture
def model(site: Site) -> TorchModel:
    job = site.job
    return TorchModel(job.backbone, site.prepare_base(), job.method.peft, job.num_classes, None, seed=0)


@pytest.fixture
def scan(model: TorchModel, shard: Shard) -> Scan:
    adapter = [name for name in model.trainable if model.is_adapter(name)]
    return lambda: FisherScan(model, shard, torch.arange(shard.num_samples).split(4), adapter, rng())


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def survives_storage(memory: Tensors, folder: Path) -> bool:
    store = StateStore(folder)
    store.save(0, 0, DeviceState(memory={"axis": memory}))
    return digest(dict(store.load(0, before=1).memory.get("axis", {}))) == digest(memory)


@pytest.mark.parametrize("kind", [kind for kind, part in PEFTS.items() if not part.trains_base])
def test_every_peft_adds_trainable_tensors_that_belong_to_blocks(kind: str, site: Site) -> None:
    """They have the names of a saved adapter, and only they and the head can move."""
    model = TorchModel(site.job.backbone, site.prepare_base(), PEFTS[kind](), site.job.num_classes, None, seed=0)
    saved = peft.get_peft_model_state_dict(model.peft_model)
    assert {name for name in model.trainable if model.is_adapter(name)} == set(saved)
    assert set(model.trainable) - set(saved) == {"head.weight", "head.bias"}
    assert model.adapter_config["peft_type"] == kind.upper()
    adapter = [name for name in model.trainable if model.is_adapter(name)]
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
    assert (scores.sensitivity is not None) == sharing.opens
    assert scores.sensitivity is None or scores.sensitivity.shape == (model.num_layers,)
    layers = {name: model.layer_of(name) for name in model.trainable}
    reports = [LayerReport(device, 5 + device, scores) for device in range(3)]
    names = sharing.select(reports, Layout(layers, model.num_layers, {}), rng()).names
    heads = {name for name, layer in layers.items() if layer is None}
    assert names <= set(layers) and names & heads in (set(), heads)
    assert sharing.select(reports, Layout(layers, model.num_layers, {}), rng()).names == names
    assert (names < set(layers)) == sharing.keeps_personal


@pytest.mark.parametrize("kind", MASKS)
def test_every_mask_says_yes_or_no_for_each_entry_of_personal_tensors(
    kind: str, model: TorchModel, scan: Scan, tmp_path: Path
) -> None:
    mask = MASKS[kind]()
    personal = [name for name in model.trainable if model.layer_of(name) == 0]
    memory = mask.refresh(mask.prepare(scan(), rng()), scan(), personal, rng())
    assert survives_storage(memory, tmp_path)
    keep = mask.keep(memory, personal)
    assert set(keep) in (set(), set(personal)) and bool(keep) == mask.needs_personal
    for name, entries in keep.items():
        assert entries.dtype == torch.bool and entries.shape == model.trainable[name].shape


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_adds_nothing_where_training_starts(kind: str, model: TorchModel) -> None:
    objective = OBJECTIVES[kind]()
    params = dict(model.trainable)
    penalty = objective.penalty(params, clone(params))
    assert penalty is None or (penalty.ndim == 0 and float(penalty.detach()) == 0)
    memory, evidence = objective.finish({}, {}, clone(params), num_steps=3, lr=0.1)
    assert isinstance(memory, dict) and isinstance(evidence, dict)
    assert isinstance(objective.absorb(objective.start(clone(params)), [evidence], 1), dict)


EVERYWHERE = {"fipa": {"null_space": "fedavg"}}
"""Settings under which an aggregator that moves along some directions alone moves along all."""


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_every_aggregator_goes_where_unanimous_devices_go(
    kind: str, model: TorchModel, shard: Shard, tmp_path: Path
) -> None:
    """As far as they do, unless its rule sets another length; and no entry against them."""
    aggregator = AGGREGATORS[kind].model_validate(EVERYWHERE.get(kind, {}))
    shared = model.read()
    names, batches = list(shared), torch.arange(shard.num_samples).split(4)
    delta = {name: torch.randn(value.shape, generator=rng(1)) for name, value in shared.items()}
    evidence = aggregator.evidence(model, shard, names, 9, rng())  # after any warm-up
    evidence |= aggregator.evidence_after(model, shard, names, batches, rng())
    updates = [
        ClientUpdate(device, 3 + device, 2, delta, evidence) for device in range(max(4, aggregator.least_cohort))
    ]
    state = aggregator.start(shared, 20)
    step, after = aggregator.combine(state, updates)
    assert survives_storage(state, tmp_path / "before") and survives_storage(after, tmp_path / "after")
    assert step.keys() == shared.keys()
    for name, value in step.items():
        assert torch.equal(value.sign(), delta[name].sign())
        if not isinstance(aggregator, Adaptive | FedDyn):
            torch.testing.assert_close(value, delta[name])
    assert aggregator.combine(state, []) == ({}, state)
