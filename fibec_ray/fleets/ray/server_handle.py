"""The Ray fleet's server actor. A lost one is replaced by another with the same state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fibec_ray.checkpoints import checkpoint
from fibec_ray.errors import FleetError, RunDirError, ServerLostError, round_name
from fibec_ray.fleets.ray.actors import ServerActor
from fibec_ray.fleets.ray.failures import get, server_errors
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.store import AcceptedStates
from fibec_ray.types import SETUP_ROUND, LayerReport, Layout

T = TypeVar("T")


class ServerHandle:
    """Call `start`, then `setup` or `restore`, then anything else.

    describe: returns P^0 (as arrays) and its layout, from a device actor. rerun: runs a round again with the same
    result. note: takes a line about what was lost. accepted: the fleet's device states, which go back together with a
    replaced server.
    """

    def __init__(
        self,
        worker_spec: WorkerSpec,
        describe: Callable[[], tuple[Any, Layout]],
        rerun: Callable[[int], None],
        note: Callable[[str], None],
        accepted: AcceptedStates,
    ):
        self._worker_spec, self._config, self._describe, self._rerun, self._note = (
            worker_spec,
            worker_spec.fleet,
            describe,
            rerun,
            note,
        )
        self._accepted, self._opened_states = accepted, accepted.all
        self.actor: Any = None
        self._layer_reports: list[LayerReport] | None = None
        """reports of the initialisation phase, if this fleet ran it"""
        self._digest = (SETUP_ROUND, "")
        """the newest known digest, and the round that it precedes"""

    def start(self) -> Layout:
        """Start the server and give it P^0."""
        # It asks for no CPU: device actors may hold all of them, and the server works while they wait. It runs on the
        # driver's node, so that only the loss of the driver itself loses it. (A soft affinity does not work: Ray 2.60
        # places actors that ask for no resources anywhere.)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        kind = ray.remote(num_cpus=0, max_restarts=0, concurrency_groups={"feed": 1})(ServerActor)
        self.actor = kind.options(scheduling_strategy=here).remote(self._worker_spec.job, self._config.threads)
        initial, layout = self._describe()
        self._await(self.actor.start.remote(initial, layout), self._config.startup_timeout_s)
        return layout

    def setup(self, layer_reports: list[LayerReport]) -> tuple[frozenset[str], Any]:
        """Run the server's half of the initialisation; returns the shared tensors' names and their scores."""
        self._layer_reports, self._opened_states = layer_reports, self._accepted.all
        found: tuple[frozenset[str], Any] = self.healing(SETUP_ROUND, partial(self._ask, "setup", layer_reports))
        return found

    def restore(self, path: Path) -> tuple[frozenset[str], Any]:
        """Restore the server from a file. Returns shared names and layer scores."""
        found: tuple[frozenset[str], Any] = self._ask("restore", path)
        return found

    def save(self, path: Path) -> Callable[[], str]:
        """Start writing the state before the next round's updates (the actor takes calls in order)."""
        return partial(self._await, self.actor.save.remote(path))

    def adapter(self, round_: int) -> Any:
        """The global model's tensors."""
        return self.healing(round_, partial(self._ask, "adapter"))

    def know_digest(self, round_: int, digest: str) -> None:
        """Note the hash of the shared tensors before a round, as the server itself has told it."""
        self._digest = round_, digest

    def digest(self, round_: int) -> str:
        """Hash of the shared tensors before a round."""
        known, digest = self._digest
        if known == round_ and digest:
            return digest
        found: str = self.healing(round_, partial(self._ask, "digest"))
        self._digest = round_, found
        return found

    def healing(self, round_: int, work: Callable[[], T]) -> T:
        """Do something that needs the server's state before a round; if the server is lost, again with a new one."""
        for attempt in range(self._config.max_retries + 1):
            try:
                if attempt:
                    self._revive(round_)
                return work()
            except ServerLostError as error:
                if attempt == self._config.max_retries or self._config.on_lost == "abort":
                    raise
                self._note(f"{error}; starting another one with the state before {round_name(max(round_, 0))}")
        raise AssertionError("not reached")

    def stop(self) -> None:
        """Kill the actor."""
        if self.actor is not None:
            ray.kill(self.actor)

    def _revive(self, round_: int) -> None:
        """Start a server with the state before a round: from the newest checkpoint, running later rounds again."""
        ray.kill(self.actor)
        self.start()
        if round_ == SETUP_ROUND:
            return
        before, digest = self._digest
        for t in range(self._restore_newest(round_), round_):
            self._rerun(t)
        if before == round_ and digest != self._ask("digest"):
            raise FleetError(
                f"{round_name(round_)}: the lost server cannot be rebuilt: running its rounds again gives other bits"
            )

    def _restore_newest(self, round_: int) -> int:
        """Give the new server the newest known state from before the round; returns the round of that state.

        Without a checkpoint it starts from the devices' reports of the initialisation phase.
        """
        for kept in reversed([kept for kept in checkpoint.rounds_kept(self._worker_spec.run_dir) if kept <= round_]):
            try:
                found = checkpoint.load(self._worker_spec.run_dir, kept)
            except RunDirError:
                continue
            self.restore(found.server)
            self._accepted.reset(found.manifest.states)
            return kept
        if self._layer_reports is None:
            raise FleetError("the server was lost, and no checkpoint can be used to continue")
        self._ask("setup", self._layer_reports)
        self._accepted.reset(self._opened_states)
        return 0

    def _ask(self, method: str, *arguments: Any) -> Any:
        return self._await(getattr(self.actor, method).remote(*arguments))

    def _await(self, ref: ray.ObjectRef, timeout_s: float | None = None) -> Any:
        """timeout_s: None: device_timeout_s."""
        with server_errors():
            return get(ref, self._config.device_timeout_s if timeout_s is None else timeout_s)
