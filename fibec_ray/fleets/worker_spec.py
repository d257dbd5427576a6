"""Everything that a process needs to host devices, as one value that travels to actors."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError

from fibec_ray.environment import read
from fibec_ray.errors import FleetError, RunDirError
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.learning.evaluation import at_rows, evaluation_chunks, in_row_order
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.group_worker import GroupWorker
from fibec_ray.learning.host import Workplace
from fibec_ray.learning.job import Job
from fibec_ray.learning.store import StateStore
from fibec_ray.model_types import LocalModel
from fibec_ray.models.built import ModelRequest
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.parts import own
from fibec_ray.parts.sharing.base import Selection
from fibec_ray.reports import DeviceReport
from fibec_ray.types import Calibration, EvaluationResult, Layout, Predictions, Products, SetupResult

ONE_BY_ONE = FleetConfig(kind="local", lanes=1)


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is built from.

    run_dir: visible to every process (shared storage on several nodes). cache_dir: local to each node.
    """

    job: Job
    run_dir: Path
    cache_dir: Path
    fleet: FleetConfig = ONE_BY_ONE
    device: str = "cpu"
    """torch device of work in the driver's process"""
    beside: int | None = None
    """planned GPU memory in addition to the base, bytes; None: not planned"""
    most_lanes: int | None = None
    """the most lanes that fit on a GPU; None: not planned"""

    def __getstate__(self) -> dict[str, Any]:
        """The job travels as plain values, and an actor builds it in its first call. An error there, such as a part
        that the node lacks, reaches the driver; an error while Ray creates an actor does not."""
        state = dict(self.__dict__)
        if job := state.pop("job", None):
            state["packed"] = job.model_dump(mode="json"), tuple(job.sources.values())
        return state

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name != "job" or "packed" not in self.__dict__:
                raise AttributeError(name)
            values, sources = self.__dict__["packed"]
            for source in sources:
                own.load_source(source)
            try:
                object.__setattr__(self, "job", Job.model_validate(values))
            except ValidationError as error:  # it was valid in the driver
                raise FleetError(f"{error.errors()[0]['msg']}; {own.NOT_AT_THE_TOP}") from error
            del self.__dict__["packed"]
            return self.job

    def lanes_to_try(self, devices: int) -> int:
        """The most lanes that a trial tries. devices: those of a cohort that one actor trains."""
        return min(devices, self.most_lanes or devices)

    def with_limit(self, found: Calibration, devices: int) -> Calibration:
        """The result of a trial, with a note if the planned memory kept it from trying more lanes."""
        most = self.lanes_to_try(devices)
        if found.limit or most == devices or most not in found.rates:
            return found
        return replace(found, limit=f"the plan has GPU memory for {most} {'lane' if most == 1 else 'lanes'}")

    @property
    def data_dir(self) -> Path:
        """Folder of the run's encoded data."""
        return self.run_dir / "data"

    @property
    def state_dir(self) -> Path:
        """Folder of the devices' states."""
        return self.run_dir / "checkpoints" / "devices"

    @property
    def store(self) -> StateStore:
        """The store of the devices' states."""
        return StateStore(self.state_dir)

    def prepare_base(self) -> Path | None:
        """Prepare the base weights on this node. Returns their folder; None for a network from scratch."""
        quiet_libraries()
        return self.job.backbone.prepare(self.job.seed, self.job.answers.num_scores, self._node_cache)

    @property
    def _node_cache(self) -> Path:
        """This node's cache, which may be in another folder than the driver's."""
        return Path(read("FIBEC_RAY_NODE_CACHE") or self.cache_dir)

    def base_fingerprint(self) -> str:
        """Digest of the base weights on this node; '' for a network from scratch."""
        return self.job.backbone.fingerprint(self.prepare_base())

    def find_products(self) -> Products | None:
        """What multiplies frozen layers, as configured or by a short trial on this machine.

        None if nothing is frozen, or if the backend always uses PyTorch's products.
        """
        job = self.job
        if not job.backbone.has_products or job.method.peft.trains_base:
            return None
        if self.fleet.products != "auto":
            return self.fleet.products
        quiet_libraries()
        rows = job.local.batch_size * job.max_length
        return job.backbone.find_products(rows, self.fleet.threads, self._node_cache)

    def with_products(self, products: Products | None) -> WorkerSpec:
        """A copy with these products of frozen layers; None: unchanged."""
        return replace(self, fleet=self.fleet.model_copy(update={"products": products})) if products else self

    def federation(self) -> Federation:
        """Open the run's data. Raises RunDirError if this node does not see the run directory."""
        if not self.data_dir.is_dir():
            raise RunDirError(
                f"{self.run_dir}: not visible from node {platform.node()}; every node must see the run directory, "
                "so put --out on storage that they share"
            )
        return Federation.load(self.data_dir)

    def opened(self, reports: list[DeviceReport], selection: Selection, layout: Layout) -> SetupResult:
        """The result of the initialisation phase."""
        own, frozen = self.job.method.has_own_models, "moving" in self.job.method.mask.lacks
        return SetupResult(reports, selection.names, layout, selection.scores, own, frozen)

    def worker(self, name: str = "driver", device: str | None = None) -> GroupWorker:
        """A worker with its own model; all processes of a node share the base weights.

        device: torch's; None: the driver's."""
        torch.set_num_threads(self.fleet.threads)
        federation = self.federation()
        model = self._model(federation, device or self.device)
        return GroupWorker(Workplace(self.job, federation, self.store, name), model, self.fleet.known_lanes or 1)

    def _model(self, federation: Federation, device: str) -> LocalModel:
        job = self.job
        request = ModelRequest(job.method.peft, job.answers, job.seed, federation.shape, self.fleet.products)
        return job.backbone.build(request, self.prepare_base(), device, self.beside)


def assemble_evaluation(
    federation: Federation, batch_size: int, parts: list[Predictions], personal: dict[int, Predictions] | None
) -> EvaluationResult:
    """Join predictions by chunk into one result.

    parts: in the order of `evaluation_chunks`. personal: None if every device's model is the global one."""
    test = federation.test_set()
    shared = in_row_order(evaluation_chunks(test, batch_size), parts)
    if personal is None:
        personal = _shared_out(shared, federation)
    return EvaluationResult(shared, personal)


def _shared_out(shared: Predictions, federation: Federation) -> dict[int, Predictions]:
    """The global model's predictions on each device's test rows, as views of one array in device order."""
    ordered = at_rows(shared, torch.from_numpy(np.concatenate(federation.test_rows)))
    sizes = [len(rows) for rows in federation.test_rows]
    all_columns = (ordered.labels, ordered.predicted, ordered.losses, ordered.num_tokens)
    columns = (column.split(sizes) for column in all_columns if column is not None)
    return {device: Predictions(*part) for device, part in enumerate(zip(*columns, strict=True))}
