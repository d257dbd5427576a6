"""The page of small made-up runs: every figure is there, numbers are the log's, and nothing comes from outside."""

import io
import json
import re

import matplotlib.image
import pytest
from round_logs import small_run

from fibec_ray.analysis.cards import cards_of, figures_of
from fibec_ray.analysis.fairness import Spread, last_spread
from fibec_ray.analysis.figure import Curve, Heat, Span
from fibec_ray.analysis.figures import draw
from fibec_ray.analysis.log import open_run
from fibec_ray.analysis.page import figure_data
from fibec_ray.analysis.report import write_report
from fibec_ray.analysis.run_page import run_page
from fibec_ray.analysis.run_tables import NO_PERSONAL
from fibec_ray.analysis.scores import scores_of
from fibec_ray.analysis.tables import RunTables, latest_layers
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


def evaluation(round_, device, accuracy):
    num_samples = 0 if accuracy is None else 10
    row = {"round": round_, "device": device, "num_samples": num_samples, "trained": True}
    return row | {"accuracy": accuracy, "loss": None, "speed_class": None}


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
        scores = [evaluation(round_, 0, 0.5), evaluation(round_, 1, 1.0), evaluation(round_, 2, None)]
        log.append(rounds_row(round_, **evaluated(round_)), reports, layer_rows, scores)
    return run_dir


def with_summary(run_dir, **changes):
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY | changes))
    return run_dir


def page_of(run_dir):
    return write_report([run_dir]).read_text(encoding="utf-8")


def figures_in(page):
    """What the page's script draws from."""
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])


def curves(run_dir, anchors=None, metric="accuracy"):
    return {figure.stem: figure for figure in figures_of(cards_of(RunTables.read(run_dir), anchors or {}, metric))}


def test_every_figure_that_the_log_has_numbers_for_is_on_the_page(tmp_path):
    page = page_of(with_summary(full_run(tmp_path)))
    stems = {figure["stem"] for figure in figures_in(page)}
    assert set(ACCURACY_STEMS) <= stems
    assert {"evaluation_loss_by_rounds", "training_loss", "data_fraction", "difficulty_seen"} <= stems
    assert {"kept_fraction", "mask_overlap", "layer_sensitivity", "personal_spread", "personal_histogram"} <= stems
    assert {"layers_sensitivity", "layers_fisher_mass", "layers_shared", "devices_device", "shard_sizes"} <= stems
    assert (
        "devices_attempt" not in stems and "true_difficulty_seen" not in stems
    )  # nothing was lost; no true difficulties
    shown = [int(at) for found in re.findall(r'data-figures="([0-9,]+)"', page) for at in found.split(",")]
    assert shown == list(range(len(stems)))


def test_the_page_needs_nothing_from_outside(tmp_path):
    page = page_of(with_summary(full_run(tmp_path)))
    assert not re.search(r"(src|href)\s*=|url\(|@import|<link|<iframe", page)
    addresses = set(re.findall(r"https?://[^\"' ]*", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|\bimport\b", page)


def test_curves_hold_the_numbers_of_the_log(tmp_path):
    found = curves(full_run(tmp_path), {"majority": 0.5})
    assert found["accuracy_by_rounds"].series[0].points == tuple(zip((1, 2, 3, 4), GLOBAL, strict=True))
    assert found["accuracy_by_rounds"].levels == (("majority class (0.500)", 0.5),)
    assert found["accuracy_by_sim_time"].x_label == "simulated time (min)"
    assert found["accuracy_by_sim_time"].series[1].points == tuple(zip((1, 2, 3, 4), PERSONAL, strict=True))
    assert found["mask_overlap"].series[0].points == ((2, 0.9), (3, 0.9), (4, 0.9))
    assert found["accuracy_by_bytes"].x_label == "sent both ways (kB)"
    assert found["accuracy_by_bytes"].series[0].points[-1] == (6.0, 0.7)
    assert found["difficulty_seen"].series[0].points[0] == (1, 1.75)  # (10 * 1 + 30 * 2) / 40
    shared, personal = found["layer_sensitivity"].series
    assert (shared.points, personal.points) == (((0, 0.9),), ((1, 0.2),))


def test_heat_maps_hold_the_numbers_of_the_log(tmp_path):
    found = curves(full_run(tmp_path))
    mass = found["layers_fisher_mass"]
    assert isinstance(mass, Heat) and mass.rows == ("0", "1") and mass.columns[:2] == (0, 1)
    assert mass.values[0] == (None, 3.5, 3.5, 3.5, 3.5)  # not known at the initialisation phase
    assert found["layers_shared"].values[1] == (0.0,) * 5
    assert found["devices_device"].values == ((1.0,) * 4, (1.0,) * 4)


def test_the_timeline_starts_a_round_where_the_last_one_ended(tmp_path):
    """Initialisation takes 10 s; in the first round one device takes 4 s and one, at the second attempt, 6 s."""
    log = RoundLog(tmp_path, METADATA)
    log.append(rounds_row(-1, sim_time_s=10.0), [], [])
    first = [
        DeviceReport(0, 4, num_samples=1, sim_time_s=4.0, actor="b"),
        DeviceReport(0, 7, num_samples=1, sim_time_s=6.0, attempt=1, actor="a"),
    ]
    log.append(rounds_row(0, sim_time_s=16.0), first, [])
    log.append(rounds_row(1, sim_time_s=18.0), [DeviceReport(1, 4, num_samples=1, sim_time_s=2.0, actor="a")], [])
    found = curves(tmp_path)["timeline"]
    assert (found.rows, found.names, found.x_label) == (("4", "7"), ("a", "b"), "simulated time (s)")
    assert found.spans == (Span(0, 10, 14, 1, 1, 0), Span(1, 10, 16, 0, 1, 1), Span(0, 16, 18, 0, 2, 0))
    assert figure_data(found)["spans"][1] == [1, 10, 16, 0, 1, 1]
    assert all(draw(found).values())


def test_of_a_long_run_the_timeline_has_the_last_rounds(tmp_path, monkeypatch):
    monkeypatch.setattr("fibec_ray.analysis.timeline.MAX_SPANS", 5)
    found = curves(full_run(tmp_path))["timeline"]  # two device-rounds a round
    assert [span.rounds for span in found.spans] == [3, 3, 4, 4] and "The last 2 rounds." in found.caption


def test_devices_spread_by_hand(tmp_path):
    """Accuracies .5 and 1; the third device has no test samples and does not count."""
    found = curves(full_run(tmp_path))
    spread = last_spread(RunTables.read(tmp_path))
    assert spread == Spread(2, 0.75, 0.5, 0.75, 1.0, 0.25)
    median, worst = found["personal_spread"].series
    assert (median.points[0], worst.points[0]) == ((1, 0.75), (1, 0.5))
    assert median.band[0] == (pytest.approx(0.55), pytest.approx(0.95))
    assert dict(found["personal_histogram"].series[0].points) | {0.525: 1, 0.975: 1} == dict(
        found["personal_histogram"].series[0].points
    )
    assert found["personal_by_shard"].series[0].points == ((10, 0.5), (30, 1.0))


@pytest.mark.parametrize(("count", "worst"), [(9, 0.0), (10, 0.0), (11, 0.5), (20, 0.5), (21, 1.0)])
def test_a_decile_is_a_tenth_rounded_up(count, worst):
    """Scores 0, 1, 2 ...: the mean of the lowest one, two or three."""
    assert Spread.of([float(at) for at in range(count)]).worst_decile == worst


def test_scores_are_final_best_and_recent_mean(tmp_path):
    tables = RunTables.read(full_run(tmp_path))
    score, personal = scores_of(tables, SUMMARY["anchors"], "accuracy")
    assert (score.final, score.final_after, score.best, score.best_after) == (0.7, 4, 0.8, 3)
    assert score.recent == pytest.approx((0.6 + 0.8 + 0.7) / 3)
    assert (score.anchor, personal.anchor) == (0.5, 0.625)


def test_the_page_shows_the_numbers_of_the_log(tmp_path):
    page = page_of(with_summary(full_run(tmp_path)))
    for shown in ("0.7000 (4)", "0.8000 (3)", "0.8500 (4)", "0.7500", "0.5000 (majority class)", "6 kB", "4 min"):
        assert shown in page, shown
    for fact in ("small", "fibecfed", "embedded", "abc123", "d1"):
        assert fact in page, fact
    assert "still going" not in page and 'class="notice"' not in page


def test_the_top_says_what_was_run_and_what_came_out(tmp_path):
    run = with_summary(full_run(tmp_path), started="2026-11-26T16:12:31+00:00", version="0.1.0")
    config = {
        "backbone": {"name": "minilm"},
        "method": {"name": "fibecfed", "peft": {"kind": "lora", "r": 8, "ranks": None}},
        "local": {"learning_rate": 0.005},
        "partition": {"kind": "dirichlet_label", "min_samples": 1, "alpha": 1.0},
    }
    (run / "config.yaml").write_text(json.dumps(config))
    found = run_page(open_run(run), RunTables.read(run))
    assert (found.headline.value, found.headline.label) == ("0.8500", "Personal accuracy")
    assert found.headline.note == "after round 4 · global accuracy 0.7000 · each device's majority class 0.6250"
    facts = {"backbone": "minilm", "rank": "8", "learning rate": "0.005", "partition": "dirichlet label (alpha 1)"}
    assert facts | {"date": "2026-11-26 16:12 UTC", "fibec_ray": "0.1.0"} == {
        label: value for label, value in found.facts if label in {*facts, "date", "fibec_ray"}
    }


def test_gpu_memory_is_shown_where_a_gpu_computed(tmp_path):
    for name, peaks in (("cpu", (None, None)), ("gpu", (7_000_000_000, 24_500_000_000))):
        log = RoundLog(tmp_path / name, METADATA)
        reports = [
            DeviceReport(0, device, num_samples=8, actor=f"pool-{device}", peak_gpu_memory_bytes=peak)
            for device, peak in enumerate(peaks)
        ]
        log.append(rounds_row(0), reports, [])
        run = with_summary(tmp_path / name, device="cuda" if name == "gpu" else "cpu", lanes=4)
        found = run_page(open_run(run), RunTables.read(run))
        facts, page = dict(found.facts), page_of(run)
        assert facts.get("peak GPU memory") == ("24.5 GB" if name == "gpu" else None)
        assert facts["computed on"] == ("cuda" if name == "gpu" else "cpu") and facts["lanes"] == "4"
        assert ("peak GPU memory" in page) == ("7 GB" in page) == (name == "gpu")


def test_personal_scores_that_equal_the_global_ones_are_left_out(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    for round_, score in enumerate(GLOBAL):
        scores = {f"{model}_accuracy": score for model in ("global", "personal")}
        log.append(rounds_row(round_, **scores, personal_accuracy_trained=score), [], [])
    page = page_of(with_summary(tmp_path, method="fedavg"))
    assert "Global accuracy" in page and "Personal accuracy" not in page and NO_PERSONAL in page
    figure = next(figure for figure in figures_in(page) if figure["stem"] == "accuracy_by_rounds")
    assert [series["label"] for series in figure["series"]] == ["global model"]


def test_layers_show_the_last_known_values(tmp_path):
    first, second = latest_layers(RunTables.read(full_run(tmp_path)))
    assert (first.shared, first.sensitivity, first.fisher_mass, first.kept_neurons) == (True, 0.9, 3.5, 12.0)
    assert (second.shared, second.sensitivity) == (False, 0.2)


def test_another_metric_than_accuracy_has_its_own_curve_and_row(tmp_path):
    RoundLog(tmp_path, METADATA).append(rounds_row(0, global_accuracy=0.5, global_metric=0.25), [], [])
    page = page_of(with_summary(tmp_path, metric="matthews"))
    assert "metric_by_rounds" in {figure["stem"] for figure in figures_in(page)}
    assert "Global matthews" in page and "0.2500" in page


def test_further_figures_of_a_task_have_their_own_curves(tmp_path):
    """Only rounds that have them; a log without any has no such curve."""
    log = RoundLog(tmp_path, METADATA)
    log.append(rounds_row(0, **evaluated(0)), [], [])
    further = {"global_metrics": [("recall", 0.5)], "personal_metrics": [("recall", 0.25), ("precision", 0.75)]}
    log.append(rounds_row(1, **evaluated(1), **further), [], [])
    found = curves(tmp_path)
    assert [each.points for each in found["metric_recall_by_rounds"].series] == [((2, 0.5),), ((2, 0.25),)]
    assert [each.label for each in found["metric_precision_by_rounds"].series] == ["personal models"]
    assert not any(stem.startswith("metric_") for stem in curves(full_run(tmp_path / "classes")))
    figures = {figure["stem"] for figure in figures_in(page_of(tmp_path))}
    assert {"metric_recall_by_rounds", "metric_precision_by_bytes"} <= figures


@pytest.mark.parametrize(
    ("metric", "unit"), [("pearson", "half squared error"), ("r2", "half squared error"), ("mcc", "nats")]
)
def test_losses_are_in_the_unit_of_the_task(metric, unit, tmp_path):
    figures = figures_of(cards_of(RunTables.read(full_run(tmp_path)), {}, metric))
    assert {each.y_label for each in figures if "loss" in each.stem} == {f"loss ({unit})"}


def test_where_answers_are_texts_perplexity_has_its_own_curve(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    log.append(rounds_row(0, **evaluated(0), global_perplexity=20.0, personal_perplexity=9.0), [], [])
    series = curves(tmp_path)["perplexity_by_rounds"].series
    assert [each.points for each in series] == [((1, 20.0),), ((1, 9.0),)]
    assert "perplexity_by_rounds" not in curves(full_run(tmp_path / "classes"))


def test_a_run_that_is_still_going_says_so(tmp_path):
    full_run(tmp_path, rounds=2)
    (tmp_path / "config.yaml").write_text("name: small\nrounds: 4\nmethod: {kind: fibecfed}\n")
    page = page_of(tmp_path)
    assert "still going" in page and "2 of 4 rounds done" in page
    assert "kind: fibecfed" in page  # the configuration, unfolded on demand


def test_a_failed_run_says_so(tmp_path):
    assert "status &#39;failed&#39;: 2 of 4 rounds done" in page_of(
        with_summary(full_run(tmp_path, rounds=2), status="failed")
    )


def test_the_log_alone_is_enough_with_one_round(tmp_path):
    page = page_of(full_run(tmp_path, rounds=1))
    stems = {figure["stem"] for figure in figures_in(page)}
    assert "rounds done: 1" in page and set(ACCURACY_STEMS) <= stems and "mask_overlap" not in stems


def test_a_run_without_evaluation_has_no_accuracy_figures(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    for round_ in range(2):
        log.append(rounds_row(round_, train_loss=0.7), [], [])
    page = page_of(tmp_path)
    assert "No round of this run has been evaluated yet." in page
    assert [figure["stem"] for figure in figures_in(page)] == ["training_loss"]


def test_a_run_that_only_opened_renders_without_figures(tmp_path):
    RoundLog(tmp_path, METADATA).append(rounds_row(-1), [], [])
    page = page_of(tmp_path)
    assert figures_in(page) == [] and "rounds done: 0" in page


def test_a_loss_that_is_not_finite_leaves_a_gap(tmp_path):
    log = RoundLog(tmp_path, METADATA)
    for round_, loss in enumerate((0.7, float("nan"), float("inf"), 0.5)):
        log.append(rounds_row(round_, train_loss=loss, global_accuracy=0.5), [], [])
    training = next(figure for figure in figures_in(page_of(tmp_path)) if figure["stem"] == "training_loss")
    assert training["series"][0]["y"] == [0.7, None, None, 0.5]
    assert all(draw(curves(tmp_path)["training_loss"]).values())


def test_hostile_names_are_text(tmp_path):
    """In the page, and in the data of the script: nothing closes the element that it stands in."""
    run = with_summary(full_run(tmp_path / "a"), name="<script>alert(1)</script>", task='"><img src=x onerror=y>')
    (run / "config.yaml").write_text("note: '</pre><b>bold</b>'\n")
    page = page_of(run)
    assert "<script>alert" not in page and "<b>bold" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for name in ("</script><script>alert(2)", "safe"):
        small_run(tmp_path / name.replace("/", "_"), {0: 0.5}, method=name)
    both = [path for path in tmp_path.iterdir() if path.name != "a"]
    page = write_report(both, tmp_path / "b.html").read_text()
    assert "<script>alert" not in page and page.count("</script>") == 3


def test_a_figure_is_the_same_each_time(tmp_path):
    found = curves(full_run(tmp_path))
    for stem in ("accuracy_by_rounds", "layers_sensitivity", "personal_by_shard"):
        assert draw(found[stem]) == draw(found[stem])
    image = draw(found["accuracy_by_rounds"])["png"]
    assert matplotlib.image.imread(io.BytesIO(image)).min() < 0.5  # something is drawn


def test_numbers_of_figures_are_short():
    curve = Curve("s", "t", "c", "x", "y", series=())
    assert figure_data(curve)["levels"] == []
    heat = Heat("s", "t", "c", "x", "y", "v", (0, 1), ("0",), ((1 / 3, None),))
    assert figure_data(heat)["values"] == [[0.33333, None]]


@pytest.mark.parametrize(("name", "text"), [("summary.json", "{"), ("summary.json", "[]"), ("config.yaml", "a: [")])
def test_a_broken_file_is_named(tmp_path, name, text):
    (full_run(tmp_path) / name).write_text(text)
    with pytest.raises(RunDirError, match=name.replace(".", r"\.")):
        page_of(tmp_path)


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(RunDirError, match="no round log here"):
        page_of(tmp_path)


# --- several runs


def test_several_runs_are_drawn_over_each_other(tmp_path):
    """Two seeds of one method: .5 and .7, so .6 with a shade from .5 to .7; and one of another."""
    runs = [small_run(tmp_path / f"a{seed}", {0: score}, seed) for seed, score in ((0, 0.5), (1, 0.7))]
    runs.append(small_run(tmp_path / "b", {0: 0.9}, 0, "fedavg"))
    page = write_report(runs, tmp_path / "page.html").read_text()
    figure = next(figure for figure in figures_in(page) if figure["stem"] == "personal_accuracy_by_rounds")
    two, one = figure["series"]
    assert (two["label"], two["x"], two["y"], two["low"], two["high"]) == ("fibecfed", [1], [0.6], [0.5], [0.7])
    assert (one["label"], one["y"], "low" in one) == ("fedavg", [0.9], False)
    assert page.count('<section class="run"') == 3 and "fibecfed, seed 1" in page and "p, Holm" in page


def test_the_top_of_several_runs_has_what_they_share(tmp_path):
    runs = [small_run(tmp_path / name, {0: 0.5}, method=name) for name in ("a", "b")]
    top = write_report(runs, tmp_path / "page.html").read_text().split("<h2>Curves</h2>")[0]
    assert "<dt>backbone</dt><dd>minilm</dd>" in top and "<dt>partition</dt><dd>dirichlet label (alpha 1)</dd>" in top
    assert "<dt>method</dt>" not in top


def test_runs_that_are_not_comparable_are_shown_with_a_word_of_warning(tmp_path):
    runs = [small_run(tmp_path / "a", {0: 0.5}), small_run(tmp_path / "b", {0: 0.5}, method="x", num_devices=20)]
    page = write_report(runs, tmp_path / "page.html").read_text()
    assert "These runs differ in more than their method: num_devices is 10" in page
