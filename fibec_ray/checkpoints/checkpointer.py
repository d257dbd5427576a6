"""Write checkpoints while training continues, after rounds that are in the round log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from fibec_ray.checkpoints import checkpoint
from fibec_ray.checkpoints.checkpoint import Checkpoint, CheckpointConfig, Manifest
from fibec_ray.errors import FibecError, RunDirError, ServerLostError
from fibec_ray.files.run_dir import flush, refused
from fibec_ray.learning.run_totals import RunTotals
from fibec_ray.learning.store import StateStore
from fibec_ray.types import Fleet, States


class Checkpointer:
    """Call `after` each round, `settle` before using the last checkpoint, and `close` however the run ends.

    One thread writes one checkpoint at a time while the next round trains. The server writes its own state, so the
    driver never holds it. start: the checkpoint that a resumed run continues from.
    """

    def __init__(
        self,
        run_dir: Path,
        run_id: str,
        config: CheckpointConfig,
        store: StateStore,
        fleet: Fleet,
        start: Checkpoint | None = None,
    ):
        self._run_dir, self._run_id, self._config, self._store, self._fleet = run_dir, run_id, config, store, fleet
        self._changed: set[int] = set()
        """devices that have worked since the last checkpoint"""
        self._states = _states_of_kept(run_dir) if start else {}
        """device states that each kept checkpoint needs, by its next round"""
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._written: list[int] = []
        """devices whose newest state the checkpoint under way is the first to need"""

    def due(self, round_: int, last: bool = False) -> bool:
        """Whether `after` saves a checkpoint after this round. last: of the run."""
        return last or (round_ + 1) % self._config.every == 0

    def after(
        self,
        round_: int,
        devices: Collection[int],
        totals: RunTotals,
        log: Mapping[str, str],
        last: bool = False,
        under_way: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """Start a checkpoint if one is due. Raises the error of an earlier one.

        log: digests of the newest parts of the round log, which has the round if `due` says so. last: of the run; its
        checkpoint is always kept. under_way: as in `RoundPlan`; what these devices have stored meanwhile is kept.
        """
        self._settle_or_skip()
        self._changed |= set(devices)
        next_round = round_ + 1
        if not self.due(round_, last):
            self._prune(devices, self._fleet.states, next_round, under_way)
            return
        draft = checkpoint.new_draft(self._run_dir, next_round)
        write, states = self._fleet.save(draft / checkpoint.SERVER), self._fleet.states
        manifest = Manifest(
            next_round=next_round,
            run_id=self._run_id,
            server="",
            lanes=self._fleet.lanes,
            products=self._fleet.products,
            base=self._fleet.base,
            totals=totals.state(),
            devices={device: ref.version for device, ref in states.items()},
            digests={device: ref.digest for device, ref in states.items() if ref.digest},
            log=dict(log),
        )
        changed, self._changed = sorted(self._changed), set()
        self._written = changed
        self._pending = self._thread.submit(self._commit, draft, write, manifest, changed, dict(under_way))

    def finish(self, last_round: int, totals: RunTotals, log: Mapping[str, str]) -> None:
        """Wait for the last checkpoint; write it again if the server was lost meanwhile."""
        if not self._settle_or_skip():
            self.after(last_round, (), totals, log, last=True)
            self.settle()

    def _settle_or_skip(self) -> bool:
        """False if the checkpoint was lost with the server; the next one then covers its devices too."""
        try:
            self.settle()
        except ServerLostError:
            self._changed |= set(self._written)
            return False
        return True

    def settle(self) -> None:
        """Wait for the last checkpoint; raises its error."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Finish the checkpoint under way, ignoring its errors, and stop the thread. Call it after failed runs too."""
        with suppress(FibecError):
            self.settle()
        self._thread.shutdown()

    def _commit(
        self,
        draft: Path,
        write: Callable[[], str],
        manifest: Manifest,
        changed: list[int],
        under_way: Mapping[int, int],
    ) -> None:
        for device in changed:  # a checkpoint must survive a power cut, and so must the states that it needs
            version = manifest.devices.get(device)
            with refused(f"device {device}: its state cannot be kept"):
                if version is not None:
                    flush(self._store.path(device, version))
        checkpoint.commit(self._run_dir, draft, manifest.model_copy(update={"server": write()}))
        self._states[manifest.next_round] = manifest.states
        rounds = checkpoint.rounds_kept(self._run_dir)
        stale = set(changed)
        for old in sorted(set(rounds) - set(self._config.kept(rounds))):
            checkpoint.remove(self._run_dir, old)
            before = self._states.pop(old, {})
            stale |= {device for device, ref in before.items() if manifest.states.get(device) != ref}
        self._prune(stale, manifest.states, manifest.next_round, under_way)

    def _prune(self, devices: Collection[int], now: States, before: int, under_way: Mapping[int, int]) -> None:
        """Delete older states of these devices, except current ones and those that kept checkpoints need."""
        if self._config.keep != "all":
            counted = (now, *self._states.values())
            needed = {(d, states[d].version) for states in counted for d in devices if d in states}
            self._store.prune(devices, needed | set(under_way.items()), before)


def _states_of_kept(run_dir: Path) -> dict[int, States]:
    """Device states that kept checkpoints of an earlier part of the run need. Damaged checkpoints are ignored."""
    found: dict[int, States] = {}
    for next_round in checkpoint.rounds_kept(run_dir):
        with suppress(RunDirError):
            found[next_round] = checkpoint.load(run_dir, next_round).manifest.states
    return found
