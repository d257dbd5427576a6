"""When devices can be drawn: pure functions of seed, device and virtual time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fibec_ray.devices import AVAILABILITIES, Simple
from fibec_ray.devices.availability.base import Always, Availability
from fibec_ray.devices.availability.markov import DAY_S, STEP_S, Markov
from fibec_ray.devices.availability.windows import Windows
from fibec_ray.errors import ConfigError

HOUR = 3600.0


def windows(path: Path, rows: list[tuple[int, float, float]], repeat_s: float | None = None) -> Windows:
    device, start, end = zip(*rows, strict=True)
    pq.write_table(pa.table({"device": device, "start_s": start, "end_s": end}), path / "windows.parquet")
    return Windows(path=str(path / "windows.parquet"), repeat_s=repeat_s)


@pytest.mark.parametrize("kind", AVAILABILITIES)
def test_the_next_time_of_every_kind_is_the_first_at_which_it_says_yes(kind: str, tmp_path: Path) -> None:
    """Looked at every 10 minutes of two days, forwards and backwards."""
    rows = [(k, 1200.0 * k, 1200.0 * k + 6000) for k in range(4)]
    known: dict[str, Availability] = {
        "always": Always(), "markov": Markov(), "windows": windows(tmp_path, rows, repeat_s=DAY_S),
    }  # fmt: skip
    rule, times = known[kind], [STEP_S * i for i in range(288)]
    for device in range(4):
        on = [rule.available(5, device, t) for t in times]
        assert on == [rule.available(5, device, t) for t in reversed(times)][::-1]
        assert any(on)
        for i in range(0, 144, 7):
            expected = next((t for t, yes in zip(times[i:], on[i:], strict=True) if yes), None)
            if expected is not None:
                assert rule.available_from(5, device, times[i]) == expected


def test_a_chain_without_a_cycle_is_on_for_its_share_of_time_and_stays_for_its_mean() -> None:
    """2 h on and 6 h off: a quarter of the time; a stay lasts 12 steps of ten minutes."""
    rule = Markov(daily=0)
    on = np.array([[rule.available(1, k, STEP_S * i) for i in range(144 * 10)] for k in range(20)])
    assert on.mean() == pytest.approx(0.25, abs=0.02)
    starts = (on[:, 1:] & ~on[:, :-1]).sum()
    assert on.sum() / starts == pytest.approx(12, rel=0.15)


def test_a_chain_does_not_know_where_days_end() -> None:
    """Over midnight the state changes as often as within the day: by one step's probability."""
    rule = Markov(daily=0)

    def change(step: int) -> float:
        pairs = [(rule.available(2, k, STEP_S * step), rule.available(2, k, STEP_S * (step - 1))) for k in range(2000)]
        return float(np.mean([now != before for now, before in pairs]))

    expected = 2 * 0.25 / 12  # a quarter is on and leaves with probability 1/12; as many come
    assert change(144) == pytest.approx(expected, abs=0.015) and change(100) == pytest.approx(expected, abs=0.015)


def test_the_daily_cycle_has_more_devices_at_night() -> None:
    """Bonawitz et al. (2019) see four times as many at night. With the defaults: about 45 % and 10 %."""
    rule = Markov()
    share = [np.mean([rule.available(0, k, HOUR * (24 + hour)) for k in range(1500)]) for hour in range(24)]
    assert 3.5 < max(share) / min(share) < 6 and 1 <= int(np.argmax(share)) <= 6 and 12 <= int(np.argmin(share)) <= 19


def test_windows_by_hand(tmp_path: Path) -> None:
    """Device 0: 10 to 20, with 15 to 30 that overlaps, and 50 to 60. Device 1 has none."""
    rule = windows(tmp_path, [(0, 50.0, 60.0), (0, 10.0, 20.0), (0, 15.0, 30.0)])
    assert [rule.available(0, 0, t) for t in (9.9, 10, 29.9, 30, 55, 60)] == [False, True, True, False, True, False]
    assert [rule.available_from(0, 0, t) for t in (0, 12, 30, 60)] == [10, 12, 50, math.inf]
    assert not rule.available(0, 1, 15) and rule.available_from(0, 1, 0) == math.inf


def test_windows_that_repeat(tmp_path: Path) -> None:
    """10 to 20 of every 100 s."""
    rule = windows(tmp_path, [(0, 10.0, 20.0)], repeat_s=100)
    assert [rule.available(0, 0, t) for t in (15, 115, 120, 1019.5)] == [True, True, False, True]
    assert [rule.available_from(0, 0, t) for t in (20, 105, 112)] == [110, 110, 112]


def test_wrong_windows_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 0 starts at 5 s and ends at 5 s; make it end later"):
        windows(tmp_path, [(0, 5.0, 5.0)]).unfit_for(1)
    with pytest.raises(ConfigError, match="row 0 ends at 200 s, after repeat_s 100; raise repeat_s, or split"):
        windows(tmp_path, [(0, 5.0, 200.0)], repeat_s=100).unfit_for(1)
    with pytest.raises(ConfigError, match="it has device 7, but the federation has devices 0 to 2"):
        windows(tmp_path, [(7, 5.0, 6.0)]).unfit_for(3)
    assert windows(tmp_path, [(2, 5.0, 6.0)]).unfit_for(3) is None


def test_a_server_waits_until_enough_devices_are_there(tmp_path: Path) -> None:
    """Device 0 is there from 10 to 30, device 1 from 20 to 40, device 2 from 35 to 50. Two at once: from 20."""
    system = Simple(availability=windows(tmp_path, [(0, 10.0, 30.0), (1, 20.0, 40.0), (2, 35.0, 50.0)]))
    assert system.gather(0, range(3), 1, 0) == (10, [0])
    assert system.gather(0, range(3), 2, 0) == (20, [0, 1])
    assert system.gather(0, range(3), 2, 31) == (35, [1, 2])
    assert system.gather(0, [2], 2, 0) == (35, [2]) and system.gather(0, [], 2, 5) == (5, [])
    with pytest.raises(ConfigError, match="2 of 3 devices are never available at once .* lower cohort_size"):
        system.gather(0, range(3), 2, 45)
    assert Simple().gather(0, range(3), 2, 7) == (7, range(3))
