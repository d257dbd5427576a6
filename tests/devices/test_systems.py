"""Simulated seconds and joules, by hand, and a suite over every kind of system."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from fibec_ray import seeds
from fibec_ray.devices import SYSTEMS, Simple, System
from fibec_ray.devices.classes import ByClass
from fibec_ray.devices.from_file import FromFile
from fibec_ray.devices.lognormal import LogNormal
from fibec_ray.devices.numbers import CLASSES
from fibec_ray.errors import ConfigError

SYSTEM = Simple(gflops=100, up_mbps=10, down_mbps=50)


def seconds(
    system: System, device: int = 0, seed: int = 0, round_: int = 0, work: tuple[Any, ...] = (3e11, 0, 0)
) -> float:
    return system.device_seconds(seed, device, round_, *work)


def test_download_compute_and_upload_by_hand() -> None:
    """100 Mbit down at 50 Mbit/s: 2 s. 3e11 flops at 1e11: 3 s. 40 Mbit up at 10: 4 s."""
    assert seconds(SYSTEM, work=(3e11, 12_500_000, 5_000_000)) == pytest.approx(9)
    assert seconds(SYSTEM, work=(3e11, 0, 0)) == pytest.approx(3)
    assert seconds(SYSTEM, work=(0, 12_500_000, 0)) == pytest.approx(2)
    assert seconds(SYSTEM, work=(0, 0, 5_000_000)) == pytest.approx(4)
    assert seconds(SYSTEM, work=(0, 0, 0)) == 0


def test_energy_by_hand() -> None:
    """4e10 flops at 2e10 per joule: 2 J. 3 MB down at 0.5 J/MB: 1.5 J. 2 MB up at 4 J/MB: 8 J."""
    system = Simple(gflops_per_joule=20, up_j_per_mb=4, down_j_per_mb=0.5)
    assert system.energy_j(0, 0, 4e10, 3_000_000, 2_000_000) == pytest.approx(11.5)
    assert system.energy_j(0, 0, 4e10, 0, 0) == pytest.approx(2)


def test_without_spread_devices_are_equal() -> None:
    assert len({seconds(SYSTEM, k, seed, work=(1e11, 1000, 1000)) for seed in (0, 1) for k in range(20)}) == 1
    assert SYSTEM.speed_classes(0, range(20)) == {}


def test_a_spread_gives_the_numbers_of_earlier_releases() -> None:
    """`system: {spread: 0.5}` of an old YAML: (flops / 1e11 + bits / rate) / e^{0.5 z}, with the z of this seed."""
    z = seeds.numpy_generator(3, "system", 7).standard_normal()
    expected = float((3e11 / (100.0 * 1e9) + 8e-6 * (1000 / 50.0 + 500 / 10.0)) / math.exp(0.5 * z))
    assert seconds(Simple(spread=0.5), 7, 3, work=(3e11, 1000, 500)) == expected


def test_spread_makes_devices_log_normal() -> None:
    """Of 2000 devices with sigma = 1/2: the logarithm of 3 s over the seconds has mean 0 and deviation 1/2."""
    system = SYSTEM.model_copy(update={"spread": 0.5})
    logs = [math.log(3 / seconds(system, k)) for k in range(2000)]
    mean = sum(logs) / 2000
    assert abs(mean) < 0.04
    assert math.sqrt(sum((x - mean) ** 2 for x in logs) / 2000) == pytest.approx(0.5, abs=0.03)


def test_a_device_keeps_its_speed_and_its_links_scale_alike() -> None:
    """The factor to a device without spread is the same for compute, download and upload, and in every round."""
    system = SYSTEM.model_copy(update={"spread": 1.0})
    work = [(1e12, 0, 0), (0, 10**7, 0), (0, 0, 10**7), (5e10, 123, 456)]
    for device in range(3):
        factors = [
            seconds(system, device, 4, round_, w) / seconds(SYSTEM, device, 4, round_, w)
            for round_, w in enumerate(work)
        ]
        assert factors == pytest.approx([factors[0]] * 4)
    assert len({seconds(system, device, 4) for device in range(20)}) == 20
    assert seconds(system, 0, 5) != seconds(system, 0, 4)


def test_separate_factors_have_the_given_spreads_and_correlation() -> None:
    """Of 2000 devices: deviations 0.3, 0.6 and 0.9 of the logarithms, and correlation 0.5 between any two."""
    system = LogNormal(compute_spread=0.3, up_spread=0.6, down_spread=0.9, correlation=0.5)
    profiles = [system.profile(0, k).numbers for k in range(2000)]
    logs = np.log([(own.gflops / 100, own.up_mbps / 11, own.down_mbps / 36) for own in profiles])
    assert logs.mean(0) == pytest.approx(0, abs=0.06)
    assert logs.std(0) == pytest.approx([0.3, 0.6, 0.9], rel=0.06)
    assert np.corrcoef(logs.T)[np.triu_indices(3, 1)] == pytest.approx(0.5, abs=0.06)


def test_jitter_differs_by_round_and_belongs_to_a_device_and_a_round() -> None:
    """Of 2000 rounds with sigma = 0.2, compute alone: log(seconds / 3) has mean 0 and deviation 0.2."""
    system = SYSTEM.model_copy(update={"jitter": 0.2})
    logs = [math.log(seconds(system, round_=round_) / 3) for round_ in range(2000)]
    assert abs(float(np.mean(logs))) < 0.02 and float(np.std(logs)) == pytest.approx(0.2, rel=0.06)
    assert seconds(system, 3, 1, 5) == seconds(system, 3, 1, 5) != seconds(system, 4, 1, 5)


def test_classes_are_drawn_by_their_shares_and_have_their_numbers() -> None:
    """Weights 3, 1 and 0 of 2000 devices: 3/4 are phones (deviation 1 %), and none is a silo."""
    system = ByClass.model_validate({"shares": {"phone": 3, "edge": 1}})
    names = system.speed_classes(0, range(2000))
    assert list(names.values()).count("phone") / 2000 == pytest.approx(0.75, abs=0.03)
    assert set(names.values()) == {"phone", "edge"}
    device = next(device for device, name in names.items() if name == "edge")
    assert system.profile(0, device).numbers == CLASSES["edge"]


def test_devices_without_a_class_are_thirds_by_speed() -> None:
    """Of 9 devices three are slow, and each of them is slower than each of the others."""
    system = LogNormal()
    names = system.speed_classes(0, range(9))
    speed = {device: system.profile(0, device).numbers.gflops for device in range(9)}
    by_class = {
        name: [speed[device] for device in names if names[device] == name] for name in ("slow", "medium", "fast")
    }
    assert [len(found) for found in by_class.values()] == [3, 3, 3]
    assert max(by_class["slow"]) < min(by_class["medium"]) and max(by_class["medium"]) < min(by_class["fast"])


def test_devices_drop_out_as_often_as_set_at_a_uniform_share() -> None:
    """Of 4000 device-rounds with probability 0.25: 1000 (deviation 27), at half of their work on average."""
    system = Simple(dropout=0.25)
    shares = [system.share_done(0, device, round_) for device in range(40) for round_ in range(100)]
    early = [share for share in shares if share < 1]
    assert len(early) == pytest.approx(1000, abs=110) and np.mean(early) == pytest.approx(0.5, abs=0.04)
    assert {Simple().share_done(0, device, 0) for device in range(20)} == {1.0}


@pytest.mark.parametrize("field", ["gflops", "up_mbps", "down_mbps", "gflops_per_joule"])
def test_a_device_without_speed_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Simple.model_validate({field: 0})


def test_partial_work_without_dropout_is_refused() -> None:
    with pytest.raises(ValidationError, match="partial_work has no effect with dropout: 0"):
        Simple(partial_work=True)
    assert Simple(partial_work=True, dropout=0.1).partial_work


def test_classes_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(ValidationError, match="shares are all 0"):
        ByClass.model_validate({"shares": {"phone": 0}})
    with pytest.raises(ValidationError, match="correlation has no effect"):
        ByClass(correlation=0.5, up_spread=0.1)


# --- every kind


def write(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def ten_devices(folder: Path, **columns: Any) -> str:
    speeds = {"gflops": [10.0 * (i + 1) for i in range(10)], "up_mbps": [1.0] * 10, "down_mbps": [8.0] * 10}
    found = {"device": list(range(10))} | speeds | columns
    return write(folder / "devices.parquet", **{name: values for name, values in found.items() if values is not None})


SETTINGS: dict[str, dict[str, Any]] = {
    "simple": {"spread": 0.5},
    "lognormal": {},
    "classes": {
        "shares": {"phone": 1, "edge": 1, "silo": 1},
        "compute_spread": 0.3,
        "up_spread": 0.1,
        "correlation": 0.2,
    },
    "file": {},
}


@pytest.mark.parametrize("kind", SYSTEMS)
def test_every_kind_gives_the_same_values_in_any_order_and_after_a_trip_through_json(kind: str, tmp_path: Path) -> None:
    own = {"path": ten_devices(tmp_path)} if kind == "file" else {}
    system = SYSTEMS[kind].model_validate(SETTINGS[kind] | own | {"jitter": 0.1})
    again = SYSTEMS[kind].model_validate_json(system.model_dump_json())
    work = [(round_, device) for round_ in (-1, 0, 1) for device in range(10)]
    found = {(r, k): (seconds(system, k, 2, r), system.energy_j(2, k, 1e9, 10, 10)) for r, k in work}
    assert found == {(r, k): (seconds(again, k, 2, r), again.energy_j(2, k, 1e9, 10, 10)) for r, k in reversed(work)}
    assert len({value for value, _ in found.values()}) == 30 and all(value > 0 for value, _ in found.values())
    assert system.unfit_for(10) is None and system.speed_classes(2, range(10))


# --- a user's file


def test_a_file_gives_each_device_its_row(tmp_path: Path) -> None:
    """Device 1: 40 Gflop at 20 Gflop/s is 2 s, 1 MB at 8 Mbit/s 1 s; 40 Gflop at 20 per joule is 2 J, 1 MB down 0.7."""
    system = FromFile(path=ten_devices(tmp_path))
    assert seconds(system, 1, work=(4e10, 1_000_000, 0)) == pytest.approx(3)
    assert system.energy_j(0, 1, 4e10, 1_000_000, 0) == pytest.approx(2.7)


def test_a_file_may_have_classes_and_energy(tmp_path: Path) -> None:
    path = ten_devices(tmp_path, speed_class=["old", "new"] * 5, gflops_per_joule=[1.0, 2.0] * 5)
    system = FromFile(path=path)
    assert system.speed_classes(0, range(3)) == {0: "old", 1: "new", 2: "old"}
    assert [system.energy_j(0, device, 2e9, 0, 0) for device in (0, 1)] == [2, 1]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no column": ({"gflops": None}, "no column 'gflops'; allowed: device, down_mbps, up_mbps; rename it"),
    "text": ({"gflops": ["fast"] * 10}, "column 'gflops' has values of type string; make them numbers"),
    "fractions": ({"device": [i + 0.5 for i in range(10)]}, "of type double; make them whole numbers"),
    "zero": ({"up_mbps": [0.0] * 10}, "column 'up_mbps', row 0: found 0.0; give a finite number, above 0"),
    "infinite": ({"up_mbps": [math.inf] * 10}, "column 'up_mbps', row 0: found inf; give a finite number, above 0"),
    "empty": ({"up_mbps": [1.0] * 9 + [None]}, "column 'up_mbps', row 9: is empty; give a value"),
    "twice": ({"device": [0, 0, *range(2, 10)]}, "device 0 has two rows; remove one"),
    "unknown": (
        {"device": [*range(9), 12]},
        "it has device 12, but the federation has devices 0 to 9; remove its rows",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_named_with_the_remedy(case: str, tmp_path: Path) -> None:
    columns, message = WRONG[case]
    path = ten_devices(tmp_path, **columns)
    with pytest.raises(ConfigError) as raised:
        FromFile(path=path).unfit_for(10)
    assert message in str(raised.value) and str(path) in str(raised.value)


def test_a_file_with_too_few_rows_or_none_is_named_with_the_remedy(tmp_path: Path) -> None:
    system = FromFile(path=ten_devices(tmp_path))
    assert "no row for device 10 (2 of 12 are missing); add them, or lower num_devices" in str(system.unfit_for(12))
    with pytest.raises(ConfigError, match="no such file; give a Parquet file"):
        FromFile(path=str(tmp_path / "none.parquet")).unfit_for(1)
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        FromFile(path=str(tmp_path / "text.parquet")).unfit_for(1)
    empty = write(
        tmp_path / "empty.parquet",
        **dict.fromkeys(("device", "gflops", "up_mbps", "down_mbps"), pa.array([], pa.int64())),
    )
    with pytest.raises(ConfigError, match="it has no rows; write one for each device"):
        FromFile(path=empty).unfit_for(1)
