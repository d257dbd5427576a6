"""Plans an experiment, and rejects one that cannot fit, before anything starts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fibec_ray.config.experiment import Experiment
from fibec_ray.files.yaml_text import to_yaml
from fibec_ray.fleets.placement import Need
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.budget import Budget
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.job import Job
from fibec_ray.learning.prepare import Prepared
from fibec_ray.models.products import candidates, in_words
from fibec_ray.preflight.anatomy import Anatomy, anatomy
from fibec_ray.preflight.disk import folder_bytes
from fibec_ray.preflight.plan import Plan, make_plan
from fibec_ray.preflight.refusal import refuse
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.preflight.room import look
from fibec_ray.preflight.samples import Samples
from fibec_ray.preflight.speed import product_rate
from fibec_ray.preflight.totals import Traffic, Work, traffic, work
from fibec_ray.types import Products


@dataclass(frozen=True)
class Outlook:
    """The full estimate for a run."""

    plan: Plan
    traffic: Traffic
    work: Work
    rate: float
    """flop/s of a process's matrix products on this machine"""
    products: Products | None
    """what multiplies frozen layers, by a trial on this machine; None on GPUs, and if nothing is frozen"""
    why_products: str = ""
    epsilon: float | None = None
    """after the last round; None without a privacy guarantee"""
    guarantee: str = ""
    """of the privacy rule, in words"""


def refuse_misfit(experiment: Experiment, job: Job, folder: Path, cache_dir: Path) -> Need:
    """Return the memory that the fleet can count on. folder: the run directory, with its data in place.

    Raises CapacityError if the run would not fit.
    """
    samples = Samples.of(Federation.load(folder / "data"))
    plan = _plan(experiment, _rehearsal(job, samples), samples, folder, cache_dir, folder / "data")
    there = folder_bytes(folder)  # the plan counts these bytes too
    refuse(replace(plan, room=replace(plan.room, run_disk=plan.room.run_disk + there)))
    return plan.memory.need


def foresee(
    experiment: Experiment, prepare: Callable[[Experiment, Path], Prepared], folder: Path, cache_dir: Path
) -> Outlook:
    """Estimate a run. The data are prepared in a temporary folder, so no size is guessed.

    prepare: writes the initial content of a run directory. Raises CapacityError if no placement is possible, and the
    errors of `prepare`.
    """
    with tempfile.TemporaryDirectory() as draft:
        prepared = prepare(experiment, Path(draft))
        job = experiment.job(prepared.answers(experiment.task))
        samples = Samples.of(Federation.load(Path(draft) / "data"))
        rehearsal = _rehearsal(job, samples)
        plan = _plan(experiment, rehearsal, samples, folder, cache_dir, Path(draft) / "data")
        worker_spec = WorkerSpec(job, folder, cache_dir, experiment.fleet)
        products = worker_spec.find_products() if "cpu" in plan.seats.placement.device else None
        rate = _rate(experiment, job, rehearsal.anatomy, products)
        sent = traffic(rehearsal, samples)
        why = _why(experiment, products) if products else ""
        worked, budget = work(experiment, rehearsal, samples, plan.seats, rate), Budget(job)
        epsilon = budget.epsilon_after(job.rounds - 1)
        return Outlook(plan, sent, worked, rate, products, why, epsilon, budget.guarantee)


def _rehearsal(job: Job, samples: Samples) -> Rehearsal:
    return Rehearsal(job, anatomy(job, samples.form))


def _plan(
    experiment: Experiment, rehearsal: Rehearsal, samples: Samples, folder: Path, cache_dir: Path, data: Path
) -> Plan:
    job = rehearsal.job
    base = job.backbone.prepared_folder(job.seed, job.answers.num_scores, cache_dir)
    room = look(experiment.fleet, folder, cache_dir, base is not None and base.is_dir())
    config = to_yaml(experiment.model_dump(mode="json"))
    return make_plan(experiment, rehearsal, samples, room, folder_bytes(data), len(config))


def _rate(experiment: Experiment, job: Job, made: Anatomy, products: Products | None) -> float:
    """Measure the model's largest products, with a batch of samples of medium length.

    products: None: the usual ones of this CPU, or PyTorch's if nothing is frozen.
    """
    rows, inside, out = made.model.largest_product(job.max_length)
    dtype, threads = job.backbone.base_dtype, experiment.fleet.threads
    usual = "torch" if made.trains_base else candidates(dtype)[0]
    return product_rate(products or usual, dtype, job.local.batch_size * rows, inside, out, threads)


def _why(experiment: Experiment, products: Products) -> str:
    """The products, and whether a trial or the settings chose them."""
    dtype = experiment.backbone.base_dtype
    chosen = "as configured" if experiment.fleet.products != "auto" else "the fastest here, in a short trial"
    return f"{in_words(products, dtype)} ({chosen})"
