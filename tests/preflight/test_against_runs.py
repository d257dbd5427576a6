"""What is planned against what was: bytes, operations and device states of small runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import after_rounds, make_regression, settings_on
from rotation import in_turn

from fibec_ray.config.load import method_files
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.job import Job
from fibec_ray.preflight.anatomy import anatomy
from fibec_ray.preflight.exchange import Exchange
from fibec_ray.preflight.samples import Samples
from fibec_ray.preflight.work import Devices
from fibec_ray.reports import DeviceReport

FROM_SCRATCH = ["fipa-paper", "fedavg-full"]
AT_MOST = {"hetlora", "fipa-paper"}
"""Devices send less where what they learn has a lower rank."""
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


def run(method: str, folder: Path) -> Ran:
    settings = make_regression(method) if method in FROM_SCRATCH else settings_on("encoder", method)
    fleet, site, reports = after_rounds(ROUNDS, settings, folder)
    samples = Samples.of(Federation.load(site.data_dir))
    made = anatomy(site.job, samples.shape)
    files = site.state_dir.rglob("*.safetensors")
    states = {(int(path.parent.name), int(path.stem)): path.stat().st_size for path in files}
    exchange, devices = Exchange(site.job, made), Devices(site.job, made, samples)
    return Ran(site.job, exchange, devices, samples, [*fleet._opened.reports, *reports], states)


def check_bytes(ran: Ran, at_most: bool = False) -> None:
    for report in ran.reports:
        size = report.num_samples
        opening = report.round < 0
        message = (
            ran.exchange.opening(report.device) if opening else ran.exchange.message(report.device, report.round, size)
        )
        found = report.bytes_down, report.bytes_up_delta, report.bytes_up_evidence
        where = f"round {report.round}, device {report.device}"
        planned = message.down, message.up_delta, message.up_evidence
        if at_most:
            assert all(most >= value for most, value in zip(planned, found, strict=True)), where
        else:
            assert planned == pytest.approx(found, rel=0.03), where


def check_work(ran: Ran) -> None:
    """In sum: which batches a curriculum shows to a device of three, and how long they are, nobody knows before."""
    planned = found = 0.0
    for report in ran.reports:
        opening = report.round < 0
        amount = (
            ran.devices.opening(report.device) if opening else ran.devices.device_round(report.device, report.round)
        )
        planned, found = planned + amount.flops, found + report.flops
    assert planned == pytest.approx(found, rel=0.25)


def check_states(ran: Ran) -> None:
    for (device, round_), size in ran.states.items():
        planned = ran.exchange.state_bytes(len(ran.samples.train[device]), opened=round_ < 0)
        assert planned == pytest.approx(size, rel=0.25), f"device {device}, round {round_}"
    if not ran.states:
        assert all(ran.exchange.state_bytes(len(part), opened=False) == 0 for part in ran.samples.train)


@pytest.mark.parametrize("method", in_turn([path.stem for path in method_files()], 4, "plan against run"))
def test_every_method_sends_computes_and_keeps_what_was_planned(method: str, tmp_path: Path) -> None:
    ran = run(method, tmp_path)
    check_bytes(ran, at_most=method in AT_MOST)
    check_work(ran)
    check_states(ran)
