"""The report of small made-up runs: every figure is there, numbers are the log's, and nothing comes from outside."""

import io
import json
import re

import matplotlib.image
import pytest

from analysis.curves import curves_of
from analysis.figures import png
from analysis.report import write_report
from analysis.scores import scores_of
from analysis.tables import RunTables, latest_layers
from fibec_ray.errors import RunDirError
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.schema import ROUNDS
from fibec_ray.roundlog.writer import RoundLog

METADATA = {"run_id": "r1", "seed": "7", "git_commit": "abc123", "config": "name: small\n"}
SUMMARY = {
    "run_id": "r1",
    "status": "finished",
    "name": "small",
    "method": "fibecfed",
    "task": "embedded",
    "metric": "accuracy",
    "seed": 7,
    "rounds": 4,
    "num_devices": 6,
    "cohort_size": 2,
    "anchors": {"majority": 0.5, "own_majority": 0.625},
    "adapter_digest": "d1",
}
GLOBAL = [0.5, 0.6, 0.8, 0.7]
PERSONAL = [0.55, 0.65, 0.75, 0.85]
ACCURACY_STEMS = [f"accuracy_by_{x}" for x in ("rounds", "sim_time", "bytes", "samples")]


def rounds_row(round_, **values):
    row = {column.name: None if column.nullable else 0 for column in ROUNDS}
    cost = {"sim_time_s": 60.0 * (round_ + 1), "bytes_up": 1000, "bytes_down": 500, "bytes_total": 1500 * (round_ + 1)}
    return row | cost | {"round": round_, "num_samples_total": 40 * (round_ + 1), "num_devices": 2} | values


def evaluated(round_):
    return {
        "global_accuracy": GLOBAL[round_],
        "global_loss": 1.0 - GLOBAL[round_],
        "personal_accuracy": PERSONAL[round_],
        "train_loss": 0.7,
        "data_fraction": 0.4 + 0.1 * round_,
        "kept_fraction": 0.3,
        "mask_overlap": 0.9 if round_ else None,
    }


def full_run(run_dir, rounds=4):
    """A run with an initialisation phase, a curriculum, scored layers and an evaluation after every round."""
    log = RoundLog(run_dir, METADATA)
    layers = [
        {"sensitivity": 0.9, "shared": True, "fisher_mass": None, "kept_neurons": None},
        {"sensitivity": 0.2, "shared": False, "fisher_mass": None, "kept_neurons": None},
    ]
    log.append(rounds_row(-1, num_devices=6), [], [{"round": -1, "layer": at} | row for at, row in enumerate(layers)])
    for round_ in range(rounds):
        reports = [
            DeviceReport(round_, 0, num_samples=10, num_samples_seen=10, difficulty_seen=1.0),
            DeviceReport(round_, 1, num_samples=30, num_samples_seen=30, difficulty_seen=2.0),
        ]
        later = [row | {"sensitivity": None, "fisher_mass": 3.5, "kept_neurons": 12.0} for row in layers]
        layer_rows = [{"round": round_, "layer": at} | row for at, row in enumerate(later)]
        log.append(rounds_row(round_, **evaluated(round_)), reports, layer_rows)
    return run_dir


def with_summary(run_dir, **changes):
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | changes))
    return run_dir


def page_of(run_dir):
    return write_report(run_dir).read_text(encoding="utf-8")


def test_every_curve_is_drawn_into_the_folder_and_the_page(tmp_path):
    page = page_of(with_summary(full_run(tmp_path)))
    stems = {path.stem for path in (tmp_path / "report").iterdir()}
    more = {"evaluation_loss", "training_loss", "data_fraction", "difficulty_seen", "layer_sensitivity"}
    assert stems == set(ACCURACY_STEMS) | more | {"kept_fraction", "mask_overlap"}
    for path in (tmp_path / "report").iterdir():
        height, width, _ = matplotlib.image.imread(path).shape
        assert (width, height) == (960, 600)  # 6.4 x 4 inches at 150 dpi
    assert page.count("<img ") == len(stems)


def test_the_page_needs_nothing_from_outside(tmp_path):
    page = page_of(with_summary(full_run(tmp_path)))
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]{0,30})', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import|<script|<link", page)


def test_curves_hold_the_numbers_of_the_log(tmp_path):
    tables = RunTables.read(full_run(tmp_path))
    curves = {curve.stem: curve for curve in curves_of(tables, {"majority": 0.5}, "accuracy")}
    assert curves["accuracy_by_rounds"].series[0].points == tuple(zip((1, 2, 3, 4), GLOBAL, strict=True))
    assert curves["accuracy_by_rounds"].levels == (("majority class (0.500)", 0.5),)
    assert curves["accuracy_by_sim_time"].x_label == "simulated time (min)"
    assert curves["accuracy_by_sim_time"].series[1].points == tuple(zip((1, 2, 3, 4), PERSONAL, strict=True))
    assert curves["mask_overlap"].series[0].points == ((2, 0.9), (3, 0.9), (4, 0.9))
    assert curves["accuracy_by_bytes"].x_label == "sent both ways (kB)"
    assert curves["accuracy_by_bytes"].series[0].points[-1] == (6.0, 0.7)
    assert curves["difficulty_seen"].series[0].points[0] == (1, 1.75)  # (10 * 1 + 30 * 2) / 40
    shared, personal = curves["layer_sensitivity"].series
    assert (shared.points, personal.points) == (((0, 0.9),), ((1, 0.2),))


def test_scores_are_final_best_and_recent_mean(tmp_path):
    tables = RunTables.read(full_run(tmp_path))
    score, personal = scores_of(tables, SUMMARY["anchors"], "accuracy")
    assert (score.final, score.final_after, score.best, score.best_after) == (0.7, 4, 0.8, 3)
    assert score.recent == pytest.approx((0.6 + 0.8 + 0.7) / 3)
    assert (score.anchor, personal.anchor) == (0.5, 0.625)


def test_the_page_shows_the_numbers_of_the_log(tmp_path):
    page = page_of(with_summary(full_run(tmp_path)))
    for shown in ("0.7000", "0.8000", "0.8500", "0.7500", "0.5000", "0.6250", "6,000 B", "240.0 s", "160"):
        assert shown in page, shown
    for fact in ("small", "fibecfed", "embedded", "abc123", "d1"):
        assert fact in page, fact
    assert "still going" not in page and 'class="notice"' not in page


def test_layers_show_the_last_known_values(tmp_path):
    first, second = latest_layers(RunTables.read(full_run(tmp_path)))
    assert (first.shared, first.sensitivity, first.fisher_mass, first.kept_neurons) == (True, 0.9, 3.5, 12.0)
    assert (second.shared, second.sensitivity) == (False, 0.2)


def test_another_metric_than_accuracy_has_its_own_curve_and_row(tmp_path):
    RoundLog(tmp_path, METADATA).append(rounds_row(0, global_accuracy=0.5, global_metric=0.25), [], [])
    page = page_of(with_summary(tmp_path, metric="matthews"))
    assert (tmp_path / "report" / "metric_by_rounds.png").exists()
    assert "Global matthews" in page and "0.2500" in page


def test_a_run_that_is_still_going_says_so(tmp_path):
    full_run(tmp_path, rounds=2)
    (tmp_path / "config.yaml").write_text("name: small\nrounds: 4\nmethod: {kind: fibecfed}\n")
    page = page_of(tmp_path)
    assert "still going" in page and "2 of 4 rounds completed" in page
    assert "kind: fibecfed" in page  # the configuration, unfolded on demand


def test_a_failed_run_says_so(tmp_path):
    assert "status &#39;failed&#39;: 2 of 4 rounds completed" in page_of(
        with_summary(full_run(tmp_path, rounds=2), status="failed")
    )


def test_the_log_alone_is_enough_with_one_round(tmp_path):
    page = page_of(full_run(tmp_path, rounds=1))
    assert "1 rounds completed" in page
    assert page.count("<img ") == len(ACCURACY_STEMS) + 6  # no mask has an overlap yet


def test_a_run_without_evaluation_has_no_accuracy_figures(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    for round_ in range(2):
        log.append(rounds_row(round_, train_loss=0.7), [], [])
    page = page_of(tmp_path)
    assert "No round of this run has been evaluated yet." in page
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["training_loss.png"]


def test_a_run_that_only_opened_renders_without_figures(tmp_path):
    RoundLog(tmp_path, METADATA).append(rounds_row(-1), [], [])
    page = page_of(tmp_path)
    assert "<img" not in page and "0 rounds completed" in page


def test_a_loss_that_is_not_finite_still_renders(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    for round_, loss in enumerate((0.7, float("nan"), float("inf"))):
        log.append(rounds_row(round_, train_loss=loss, global_accuracy=0.5), [], [])
    assert "0.5000" in page_of(tmp_path)
    assert (tmp_path / "report" / "training_loss.png").exists()


def test_hostile_names_are_text(tmp_path):
    with_summary(full_run(tmp_path), name="<script>alert(1)</script>", task='"><img src=x onerror=y>')
    (tmp_path / "config.yaml").write_text("note: '</pre><b>bold</b>'\n")
    page = page_of(tmp_path)
    assert "<script" not in page and "<b>" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_figure_is_the_same_each_time(tmp_path):
    curve = curves_of(RunTables.read(full_run(tmp_path)), {}, None)[0]
    assert png(curve) == png(curve)
    assert matplotlib.image.imread(io.BytesIO(png(curve))).min() < 0.5  # something is drawn


@pytest.mark.parametrize(("name", "text"), [("summary.json", "{"), ("summary.json", "[]"), ("config.yaml", "a: [")])
def test_a_broken_file_is_named(tmp_path, name, text):
    (full_run(tmp_path) / name).write_text(text)
    with pytest.raises(RunDirError, match=name.replace(".", r"\.")):
        write_report(tmp_path)


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(RunDirError, match="no round log here"):
        write_report(tmp_path)
