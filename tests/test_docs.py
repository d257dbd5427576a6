"""The documentation: links lead to files, commands are valid, generated pages are current, the site builds."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT, WRITTEN, blocks, commands, files, prose
from PIL import Image
from test_words import RIDDLE

from fibec_ray.cli.main import _parse, main
from fibec_ray.cli.reference import pages
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.names import config_folder, method_files
from fibec_ray.config.reading import read_yaml
from fibec_ray.method import AXES
from fibec_ray.sweeps.load import load_sweeps
from fibec_ray.sweeps.read import read_sweep

READS_EXPERIMENT = {"run", "plan", "show", "submit"}
PLACEHOLDERS = {"CONFIG": "quickstart"}


@pytest.mark.parametrize("name", pages())
def test_generated_pages_are_current(name: str) -> None:
    found = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert found == pages()[name], "run: python -m fibec_ray.cli.reference"


def test_every_setting_says_what_it_means() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|.*\| ([^|]*) \|$", pages()["settings.md"], re.M)
    assert len(rows) > 90
    assert [key for key, meaning in rows if not meaning.strip()] == []


def test_every_command_and_argument_says_what_it_does() -> None:
    rows = re.findall(r"^\| (`.+`) \| ([^|]*) \|$", pages()["cli.md"], re.M)
    assert len(rows) > 60
    assert [key for key, meaning in rows if not meaning.strip()] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name: str) -> None:
    page = PAGES[name]
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'\b(?:src|srcset)="([^"]+)"', text)
    for target in (each.partition("#")[0] for each in targets if "://" not in each):
        assert not target or (page.parent / target).exists(), f"{name}: {target}"


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_plain_english(name: str) -> None:
    text = " ".join(prose(PAGES[name].read_text(encoding="utf-8")).split())
    assert RIDDLE.findall(text) == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's table and images, beside the checkout's configs and cluster files."""
    rows = [f"message {n},{'a' if n % 2 else 'b'}" for n in range(80)]
    (tmp_path / "my.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    for n in range(40):
        image = tmp_path / "photos" / ("cat" if n % 2 else "dog") / f"{n}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (n, n, n)).save(image)
    for folder in ("configs", "cluster"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


WITH_COMMANDS = [name for name, page in WRITTEN.items() if commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "name", [name for name in WITH_COMMANDS if name != "docs/getting-started.md"]
)  # runs as a whole
def test_commands_are_valid(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They parse, and experiments with their settings are checked as a run checks them."""
    text = WRITTEN[name].read_text(encoding="utf-8")
    for file, content in files(text).items():
        (place / file).write_text(content, encoding="utf-8")
    for words in commands(text):
        arguments = _parse([PLACEHOLDERS.get(word, word) for word in words])
        if words[0] in READS_EXPERIMENT:
            found = main(["show", str(arguments.config), *arguments.overrides])
            assert found == 0, f"{words}: {capsys.readouterr().err}"
        elif words[0] == "sweep":
            tasks = list(read_sweep(arguments.config).get("tasks", ()))  # test_paper_sweeps.py loads all
            load_sweeps(arguments.config, [*(f"task={task}" for task in tasks[:1]), *arguments.overrides])


YAML_BLOCKS = [
    (name, block)
    for name, page in WRITTEN.items()
    if name != "docs/adding-a-method.md"  # tests/test_adding_a_method.py runs that page
    for block in blocks(page.read_text(encoding="utf-8"), "yaml")
]


@pytest.mark.parametrize(("name", "block"), YAML_BLOCKS, ids=lambda value: value if len(value) < 40 else "")
def test_yaml_is_valid(name: str, block: str, place: Path) -> None:
    """Whole experiments, sections of one, methods and sweeps."""
    raw = yaml.safe_load(block)
    if "variants" in raw:
        return  # with its command, above
    for file, content in files(WRITTEN[name].read_text(encoding="utf-8")).items():
        (place / file).write_text(content, encoding="utf-8")
    base = read_yaml(config_folder() / "quickstart.yaml")
    if raw.keys() & AXES.keys():
        raw = {"method": raw}
    assert raw.keys() <= Experiment.model_fields.keys()
    (place / "page.yaml").write_text(yaml.safe_dump(raw if raw.keys() >= {"name", "rounds"} else base | raw))
    assert main(["show", "page.yaml"]) == 0


@pytest.mark.parametrize("name", [name for name, page in WRITTEN.items() if blocks(page.read_text(), "python")])
def test_python_parses_and_its_imports_exist(name: str) -> None:
    for block in blocks(WRITTEN[name].read_text(encoding="utf-8"), "python"):
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), name, "exec"), {})


def test_the_front_page_is_short_and_has_its_pictures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    assert len(re.findall(r"<picture>", text)) == 3


@pytest.mark.timeout(900)
def test_the_python_of_the_front_page_runs(place: Path) -> None:
    code = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")[0]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "global_accuracy" in done.stdout and "Prediction(label=" in done.stdout


def test_the_front_page_counts_what_there_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"and {len(method_files()) - 2} other methods" in text  # beside FibecFed and FIPA
    assert f"{len(AXES['peft'])} PEFT kinds" in text


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["license"] == "Apache-2.0"


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_issue_forms_have_what_forms_need(form: Path) -> None:
    raw = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert raw["name"] and raw["description"]
    for field in raw["body"]:
        assert field["type"] in ("input", "textarea") and field["attributes"]["label"] and field["id"]


def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    subprocess.run([sys.executable, ROOT / "docs" / "gather.py", tmp_path / "docs"], check=True)
    folders = {"docs_dir": str(tmp_path / "docs"), "site_dir": str(tmp_path / "site")}
    build(load_config(str(ROOT / "mkdocs.yml"), **folders))  # strict: raises Abort at a warning
    site = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("index.html")}
    written = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {f"{stem}/index.html" for stem in written} <= site
    front = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    for picture in ("architecture", "quickstart", "results"):
        assert f'images/{picture}.svg#only-light"' in front and f'images/{picture}-dark.svg#only-dark"' in front


@pytest.mark.parametrize(
    ("source", "link", "found"),
    [
        ("README.md", "[a](docs/faq.md#x)", "[a](faq.md#x)"),
        ("README.md", "[a](LICENSE)", "a"),  # not a page of the site
        ("README.md", "[a](docs/none.md)", "[a](none.md)"),  # the build names it
        ("docs/faq.md", "[a](../SECURITY.md)", "[a](security.md)"),
        ("cluster/aws/README.md", "[a](../README.md)", "[a](../index.md)"),
        ("docs/faq.md", "[a](https://ray.io)", "[a](https://ray.io)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(source: str, link: str, found: str) -> None:
    gather = runpy.run_path(str(ROOT / "docs" / "gather.py"))
    assert gather["relinked"](link, source) == found
