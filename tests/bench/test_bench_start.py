"""The table of the time to the first round."""

from __future__ import annotations

from fibec_ray.bench.start import RAY, Start, _kind, table


def test_processes_are_told_apart_by_their_titles() -> None:
    titles = {"ray::DeviceActor": "device actors", "ray::ServerActor": "server actor", "raylet": RAY, "gcs_server": RAY}
    assert {title: _kind(title) for title in titles} == titles
    assert _kind("python3.11") == "driver and its helpers" and _kind("ray::DashboardAgent") == RAY


def test_the_table_has_medians_and_ratios() -> None:
    bare = [Start(seconds, {"driver and its helpers": 10.0}) for seconds in (8.0, 10.0, 30.0)]
    engine = [Start(seconds, {"device actors": 8.0, RAY: 1.0}) for seconds in (12.0, 11.0, 36.0)]
    rows = table({"bare": bare, "ours": engine}).splitlines()
    assert rows[2] == "| bare | 10.0 | 1.00 | 10.0 | 10.0 | 0.0 | 0.0 | 0.0 |"
    assert rows[3] == "| ours | 12.0 | 1.20 | 9.0 | 0.0 | 0.0 | 8.0 | 1.0 |"
