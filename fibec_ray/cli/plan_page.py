"""Prints the plan of a run, as text or as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from fibec_ray.cli.terminal import print_table
from fibec_ray.cli.units import duration, size
from fibec_ray.models.backends import CONTEXT_BYTES
from fibec_ray.preflight.check import Outlook
from fibec_ray.preflight.plan import Memory, Plan


def as_json(outlook: Outlook) -> dict[str, Any]:
    """Return the plan as plain values: bytes, seconds and floating point operations."""
    totals = {
        "traffic_total": outlook.traffic.total,
        "flops_total": outlook.work.setup_flops + sum(outlook.work.rounds_flops),
        "disk_run": outlook.plan.disk.run,
    }
    values = asdict(outlook) | totals
    if outlook.plan.backend_choice is not None:
        values["plan"]["backend_choice"] = outlook.plan.backend_choice._asdict()
    return values


def show(outlook: Outlook, console: Console) -> None:
    """Print a plan as a table."""
    plan = outlook.plan
    table = Table(title=f"{plan.experiment}, {plan.method}: what the run will take", title_justify="left")
    table.add_column("", overflow="fold")
    table.add_column("takes", justify="right", no_wrap=True)
    table.add_column("details", overflow="fold")
    for section in (_model, _places, _memory, _disk, _traffic, _work, _privacy):
        for row in section(outlook):
            table.add_row(*row)
        table.add_section()
    print_table(console, table)


Rows = list[tuple[str, str, str]]


def _model(outlook: Outlook) -> Rows:
    model = outlook.plan.model
    split = f"{model.shared:,} shared, {model.personal:,} personal"
    return [
        ("parameters", _count(model.parameters), f"frozen base weights of {size(model.frozen_bytes)}"),
        ("trainable", _count(model.trainable), split),
    ]


def _places(outlook: Outlook) -> Rows:
    seats = outlook.plan.seats
    kind = "per_device" if seats.placement.per_device else "pooled"
    side = f", {seats.lanes} side by side" if seats.lanes > 1 else ""
    hosted = f"{seats.devices_per_actor} devices each, {seats.cohort_per_actor} in a round{side}"
    return [
        ("placement", kind, seats.placement.reason),
        ("device processes", str(seats.placement.num_actors), hosted),
    ]


def _memory(outlook: Outlook) -> Rows:
    return memory_rows(outlook.plan)


def memory_rows(plan: Plan) -> Rows:
    """Rows about memory: the name, the amount, and details."""
    needed = plan.memory
    there = ", on the GPU" if needed.actor.gpu else ""
    held = [("backbone.backend", *plan.backend_choice)] if plan.backend_choice else []
    rows = [
        *held,
        ("memory of a process", size(needed.actor.private), f"{size(needed.actor.tensors)} of tensors at most{there}"),
        ("base weights, once per node", size(needed.base_per_node), "in the page cache, shared by all processes"),
        ("memory in total", size(needed.total), f"{size(needed.available)} available"),
    ]
    if needed.actor.gpu:
        rows += _gpu_memory(needed, plan.seats.lanes)
    return rows


def _gpu_memory(needed: Memory, lanes: int) -> Rows:
    """GPU memory of a process and of a GPU, and the lanes that fit."""
    actor = needed.actor
    base = actor.gpu - CONTEXT_BYTES - actor.beside
    parts = f"CUDA context {size(CONTEXT_BYTES)}, base {size(base)}, activations and adapters {size(actor.beside)}"
    free = "free memory unknown" if needed.gpu_available is None else f"{size(needed.gpu_available)} free"
    most = "" if needed.most_lanes is None else f"; room for about {needed.most_lanes} lanes"
    sharing = f"{needed.sharing} {'process' if needed.sharing == 1 else 'processes'}"
    return [
        ("GPU memory of a process", size(actor.gpu), f"{parts}, with {lanes} {'lane' if lanes == 1 else 'lanes'}"),
        ("GPU memory of a GPU", size(needed.gpu_needed), f"{sharing}; {free}{most}"),
    ]


def _disk(outlook: Outlook) -> Rows:
    taken, room = outlook.plan.disk, outlook.plan.room
    parts = f"data {size(taken.data)}, device states {size(taken.states)}, checkpoints {size(taken.checkpoints)}"
    rest = f"log {size(taken.log)}, adapter {size(taken.adapter)}"
    rows = [("disk, run directory", size(taken.run), f"{parts}, {rest}")]
    there = "already prepared" if room.base_is_there else f"{size(room.cache_disk)} free"
    return [*rows, ("disk, prepared base", size(taken.base), there)]


def _traffic(outlook: Outlook) -> Rows:
    sent, rounds = outlook.traffic, len(outlook.traffic.rounds_up)
    each = f"down {size(sent.device_round_down)}, up {size(sent.device_round_up)}"
    setup = f"initialisation down {size(sent.setup_down)}, up {size(sent.setup_up)}"
    return [
        ("sent per device-round", size(sent.device_round_down + sent.device_round_up), each),
        ("sent per round", size((sum(sent.rounds_down) + sum(sent.rounds_up)) / rounds), ""),
        ("sent in total", size(sent.total), setup if sent.setup_down else ""),
    ]


def _work(outlook: Outlook) -> Rows:
    done, rounds = outlook.work, len(outlook.work.rounds_flops)
    total = done.setup_flops + sum(done.rounds_flops)
    rate = f"matrix products of a process: {outlook.rate / 1e9:.0f} Gflop/s, measured just now"
    parts = f"start {duration(done.start_s)}, initialisation {duration(done.setup_s)}"
    products = [("fleet.products", outlook.products, outlook.why_products)] if outlook.products else []
    return [
        *products,
        ("operations per round", f"{sum(done.rounds_flops) / rounds:.2e}", ""),
        ("operations in total", f"{total:.2e}", f"plus {done.evaluation_flops:.2e} for evaluations"),
        ("time per round", f"about {duration(done.round_s)}", rate),
        ("time in total", f"about {duration(done.run_s)}", parts),
    ]


def _privacy(outlook: Outlook) -> Rows:
    return [] if outlook.epsilon is None else [("epsilon", f"{outlook.epsilon:.3g}", outlook.guarantee)]


def _count(number: float) -> str:
    for unit in ("", " k", " M"):
        if number < 1000:
            return f"{number:.0f}{unit}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f} G"
