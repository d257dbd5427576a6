"""Paper figures: what is asked for, in the size and font asked for, and no file twice."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.image
import pytest
from round_logs import big_run, small_run

from fibec_ray.analysis.figure import MAX_ERROR_BARS, Curve, Series
from fibec_ray.analysis.figures import draw
from fibec_ray.analysis.paper_style import STYLES, Style, style_of
from fibec_ray.analysis.report import write_report
from fibec_ray.cli.main import main
from fibec_ray.errors import UserError

LINES = Curve(
    "s", "A title", "c", "x axis", "y axis", (Series("one", ((0, 1), (1, 2))), Series("two", ((0, 2), (1, 1))))
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big_run(tmp_path_factory.mktemp("runs") / "run", 4, 5)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()} - {"figures.json"}


def test_only_what_is_asked_for_is_written(run: Path, tmp_path: Path) -> None:
    command = ["report", str(run), "--out", str(tmp_path / "p.html"), "--figures", str(tmp_path / "f")]
    assert main([*command, "--only", "accuracy_by_r*,timeline", "--format", "pdf,svg"]) == 0
    stems = ("accuracy_by_rounds", "timeline")
    assert names(tmp_path / "f") == {f"{stem}.{ending}" for stem in stems for ending in ("pdf", "svg")}


def test_figures_that_have_not_changed_are_left_alone(run: Path, tmp_path: Path) -> None:
    def written(style: Style) -> dict[str, int]:
        write_report([run], tmp_path / "p.html", tmp_path / "f", style, ["training_loss", "data_fraction"])
        return {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "f").glob("*.svg")}

    first = written(Style(formats=("svg",)))
    (tmp_path / "f" / "data_fraction.svg").unlink()
    second = written(Style(formats=("svg",)))
    assert first["training_loss"] == second["training_loss"] and first["data_fraction"] < second["data_fraction"]
    assert min(written(Style(formats=("svg",), titles=True)).values()) > max(second.values())


def test_of_several_runs_the_comparison_is_drawn_and_single_runs_when_asked(tmp_path: Path) -> None:
    runs = [small_run(tmp_path / name, {0: 0.2, 3: 0.5}, method=name) for name in ("a", "b")]
    style, out = Style(formats=("svg",)), tmp_path / "page.html"
    write_report(runs, out, tmp_path / "f", style, ["personal_accuracy_by_bytes"])
    assert names(tmp_path / "f") == {"personal_accuracy_by_bytes.svg"} and len(list((tmp_path / "f").iterdir())) == 2
    write_report(runs, out, tmp_path / "f", style, ["accuracy_by_rounds"], each_run=True)
    assert {path.name for path in (tmp_path / "f").iterdir() if path.is_dir()} == {"a--seed-0", "b--seed-0"}
    with pytest.raises(UserError, match="single runs have it: add --each-run"):
        write_report(runs, out, tmp_path / "f", style, ["accuracy_by_rounds"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "acuracy_by_rounds"], "did you mean 'accuracy_by_rounds'"),
        (["--format", "eps"], "--format eps: no such format; choose from pdf, svg, png"),
        (["--size", "3"], "--size 3: give WIDTHxHEIGHT in inches, each 1 to 40, such as --size 3.4x2.3"),
        (["--size", "300x200"], "in inches, each 1 to 40"),
        (["--style", "two-colum"], "did you mean 'two-column'"),
        (["--font", "DejaVu Sanz"], "did you mean 'DejaVu Sans'"),
        (["--font-size", "400"], "--font-size 400: give 4 to 40 points"),
    ],
)
def test_a_wrong_option_says_what_is_allowed_and_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    command = ["report", str(run), "--out", str(tmp_path / "p.html"), "--figures", str(tmp_path / "f"), *options]
    assert main(command) == 2
    assert message in " ".join(capsys.readouterr().err.split()) and not list(tmp_path.iterdir())


def test_options_of_figures_need_a_folder_for_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "p.html"), "--size", "3x2"]) == 2
    assert "--size: changes paper figures, and none are written; add --figures DIR" in capsys.readouterr().err


def test_the_size_is_in_inches_and_a_legend_adds_to_a_style(tmp_path: Path) -> None:
    def size(style: Style, curve: Curve) -> tuple[float, float]:
        path = tmp_path / "a.png"
        path.write_bytes(draw(curve, style)["png"])
        height, width, _ = matplotlib.image.imread(path).shape
        return width / style.dpi, height / style.dpi

    alone = Curve("s", "t", "c", "x", "y", LINES.series[:1])
    assert size(style_of("two-column"), alone) == pytest.approx(STYLES["two-column"], abs=0.01)
    assert size(style_of(), LINES)[1] > STYLES["one-column"][1] + 0.1
    assert size(style_of(size="5x3"), LINES) == (5, 3)


def test_titles_are_off_and_text_stays_text() -> None:
    svg = draw(LINES, Style(formats=("svg",)))["svg"].decode()
    assert ">x axis<" in svg and "A title<" not in re.sub(
        r"<metadata>.*?</metadata>|<title>.*?</title>", "", svg, flags=re.S
    )
    assert "A title</text>" in draw(LINES, Style(formats=("svg",), titles=True))["svg"].decode()
    assert (
        "font-size: 12px; font-family: 'DejaVu Serif'"
        in draw(LINES, style_of(font="DejaVu Serif", font_size=12))["svg"].decode()
    )


def test_a_pdf_embeds_its_fonts_as_truetype() -> None:
    pdf = draw(LINES, Style(formats=("pdf",)))["pdf"]
    assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf and b"/TrueType" in pdf or b"/CIDFontType2" in pdf


def test_bands_of_several_series_become_error_bars() -> None:
    points = tuple((float(at), 0.5) for at in range(20))
    banded = Series("a", points, tuple((0.4, 0.6) for _ in points))
    assert Curve("s", "t", "c", "x", "y", (banded,)).error_bars() == [()]
    first, second, none = Curve("s", "t", "c", "x", "y", (banded, banded, Series("b", points))).error_bars()
    assert none == () and 0 < len(first) <= MAX_ERROR_BARS and not set(first) & set(second)
