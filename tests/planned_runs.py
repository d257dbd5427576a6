"""Runs of a few rounds beside their plans, for tests of what was planned against what was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import after_rounds

from fibec_ray.learning.federation import Federation
from fibec_ray.learning.job import Job
from fibec_ray.preflight.anatomy import anatomy
from fibec_ray.preflight.exchange import Exchange
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.preflight.samples import Samples
from fibec_ray.preflight.work import Devices
from fibec_ray.reports import DeviceReport

ROUNDS = 3


@dataclass
class Ran:
    job: Job
    exchange: Exchange
    devices: Devices
    samples: Samples
    reports: list[DeviceReport]
    """the initialisation phase first"""
    states: dict[tuple[int, int], int]
    """bytes of the file of (device, round)"""


def run(settings: dict[str, Any], folder: Path) -> Ran:
    fleet, worker_spec, reports = after_rounds(ROUNDS, settings, folder)
    samples = Samples.of(Federation.load(worker_spec.data_dir))
    made = anatomy(worker_spec.job, samples.form)
    files = worker_spec.state_dir.rglob("*.safetensors")
    states = {(int(path.parent.name), int(path.stem)): path.stat().st_size for path in files}
    rehearsal = Rehearsal(worker_spec.job, made)
    exchange, devices = Exchange(rehearsal), Devices(rehearsal, samples)
    return Ran(worker_spec.job, exchange, devices, samples, [*fleet._opened.reports, *reports], states)


def check_bytes(ran: Ran, at_most: bool = False) -> None:
    for report in ran.reports:
        size = report.num_samples
        setup = report.round < 0
        message = (
            ran.exchange.setup(report.device, ran.samples.num_words)
            if setup
            else ran.exchange.message(report.device, report.round, size)
        )
        found = report.bytes_down, report.bytes_up_delta, report.bytes_up_extras
        where = f"round {report.round}, device {report.device}"
        planned = message.down, message.up_delta, message.up_extras
        if at_most:
            assert all(most >= value for most, value in zip(planned, found, strict=True)), where
        else:
            assert planned == found, where


def check_work(ran: Ran) -> None:
    """In sum: which batches a curriculum shows, and how long they are, is not known before a run."""
    planned = found = 0.0
    for report in ran.reports:
        setup = report.round < 0
        amount = ran.devices.setup(report.device) if setup else ran.devices.device_round(report.device, report.round)
        planned, found = planned + amount.flops, found + report.flops
    assert planned == pytest.approx(found, rel=0.05 if ran.job.method.curriculum.kind == "all" else 0.25)


def check_states(ran: Ran) -> None:
    for (device, round_), size in ran.states.items():
        planned = ran.exchange.state_bytes(len(ran.samples.train[device]), opened=round_ < 0)
        assert planned == size, f"device {device}, round {round_}"
    if not ran.states:
        assert all(ran.exchange.state_bytes(len(part), opened=False) == 0 for part in ran.samples.train)
