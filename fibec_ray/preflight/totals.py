"""What a run sends, computes and takes in time, over all rounds.

Time is the least certain prediction: it assumes an idle machine, as fast as a trial of a quarter of a second. Bytes and
operations depend only on the experiment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fibec_ray.config.experiment import Experiment
from fibec_ray.fleets.placement import ACTOR_CPU_S
from fibec_ray.preflight.exchange import Exchange, Message
from fibec_ray.preflight.foresight import plans_of
from fibec_ray.preflight.plan import Seats
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.preflight.samples import Samples
from fibec_ray.preflight.work import Amount, Devices
from fibec_ray.types import SETUP_ROUND

EFFICIENCY = 0.6
"""Speed of a whole pass on a CPU, relative to its products (attention, norms and sums are slower)."""
BLOCK_S = 0.0012
"""Seconds of overhead per transformer block and pass, since operations have a fixed cost."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that devices send (up) and receive (down). Per device-round: the mean of the last round."""

    setup_down: int
    setup_up: int
    device_round_down: int
    device_round_up: int
    rounds_down: tuple[int, ...]
    """of each round's whole cohort"""
    rounds_up: tuple[int, ...]

    @property
    def total(self) -> int:
        """All bytes, as `bytes_total` in the last row of the round log."""
        return self.setup_down + self.setup_up + sum(self.rounds_down) + sum(self.rounds_up)


@dataclass(frozen=True)
class Work:
    """Floating point operations as in the round log, and real seconds."""

    setup_flops: float
    rounds_flops: tuple[float, ...]
    evaluation_flops: float
    """of all evaluations; the log does not count them"""
    start_s: float
    setup_s: float
    round_s: float
    """mean per round, without evaluations"""
    run_s: float


def traffic(rehearsal: Rehearsal, samples: Samples) -> Traffic:
    """Bytes sent over all rounds."""
    job, exchange = rehearsal.job, Exchange(rehearsal)
    plans = plans_of(rehearsal, samples)
    opened = _both_ways(exchange.setup(device, samples.num_words) for device in range(job.num_devices))
    rounds = [
        _both_ways(
            exchange.message(device, plan.version_of(device), len(samples.train[device])) for device in plan.cohort
        )
        for plan in plans
    ]
    (down, up), size = rounds[-1], max(1, len(plans[-1].cohort))
    return Traffic(*opened, down // size, up // size, *zip(*rounds, strict=True))


def work(experiment: Experiment, rehearsal: Rehearsal, samples: Samples, seats: Seats, rate: float) -> Work:
    """Operations and time over all rounds. rate: flop/s of a process's products, with the fleet's threads."""
    job, devices, count = rehearsal.job, Devices(rehearsal, samples), seats.placement.num_actors
    opened = sum((devices.setup(device) for device in range(job.num_devices)), Amount())
    rounds = [
        sum((devices.device_round(d, plan.version_of(d), plan.shares.get(d, 1.0)) for d in plan.cohort), Amount())
        for plan in plans_of(rehearsal, samples)
    ]
    own = "personal" not in job.method.sharing.lacks or job.method.has_own_models
    times = sum(experiment.evaluates(t) for t in range(SETUP_ROUND, job.rounds))
    evaluated = devices.evaluation(own).times(times)
    layers = max(1, rehearsal.anatomy.layout.num_layers)

    def seconds(amount: Amount, at_once: int) -> float:
        computing = (amount.flops + amount.recomputed) / (rate * EFFICIENCY)
        return (computing + amount.steps * layers * BLOCK_S) / max(1, at_once)

    setup_s, rounds_s = seconds(opened, count), seconds(sum(rounds, Amount()), min(count, job.cohort_size))
    start_s = ACTOR_CPU_S * (1 + count / max(1.0, seats.cpus)) if experiment.fleet.kind == "ray" else 0.0
    run_s = start_s + setup_s + rounds_s + seconds(evaluated, count)
    flops = tuple(each.flops for each in rounds)
    return Work(opened.flops, flops, evaluated.flops, start_s, setup_s, rounds_s / job.rounds, run_s)


def _both_ways(messages: Iterable[Message]) -> tuple[int, int]:
    """Bytes down and up."""
    found = list(messages)
    return sum(message.down for message in found), sum(message.up for message in found)
