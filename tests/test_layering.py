"""Imports only point down, and each library has its home. Parses every file, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fibec_ray
from fibec_ray.method import AXES

PACKAGE = Path(fibec_ray.__file__).parent

LAYERS = (
    ("__main__", "testing"),
    ("cli",),
    ("api",),
    ("jobs", "sweeps", "bench", "export"),
    ("runs",),  # runs what config describes
    ("preflight",),  # plans it
    ("config",),
    ("fleets",),
    ("checkpoints",),
    ("learning",),
    ("analysis",),
    ("tasks",),
    ("method", "models", "data", "roundlog", "samplers", "schedules"),
    ("parts", "devices"),
    (
        "curvature",
        "files",
        "responses",
        "batch_facts",
        "likelihoods",
        "answers",
        "directions",
        "low_rank",
        "heads",
        "blocks",
        "tensors",
        "seeds",
        "types",
        "model_types",
        "reports",
        "effects",
        "encoder",
        "errors",
        "environment",
        "garbage",
        "word_counts",
        "image_reading",
        "interrupts",
    ),
)
"""From top to bottom. A module imports lower layers and its own package; the files of the lowest layer each other."""


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
RIVALS = "fibec_ray.bench.rivals"
BARE = (RIVALS, "fibec_ray.bench.lanes", "fibec_ray.bench.gpu_trials")
"""Benchmarks that do without the engine."""
"""Run in environments where nothing else of ours is installed."""
OURS = [name for name in FILES if name.startswith("fibec_ray.")]


def imported(source: str, known: frozenset[str] = frozenset(FILES)) -> Iterator[str]:
    """Full names of what a file imports: modules, and `package.name` only where that is a module of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports hide where they point"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


IMPORTS = {name: frozenset(imported(path.read_text(encoding="utf-8"))) for name, path in FILES.items()}
IMPORTS["fibec_ray"] = frozenset()  # `import fibec_ray` loads nothing; it names what it loads when it is used


def part_of(module: str) -> str:
    """fibec_ray.parts.mask.base -> parts; fibec_ray.tensors -> tensors; fibec_ray -> ''."""
    return (module.split(".") + [""])[1]


def layer_of(module: str) -> int:
    return next(depth for depth, names in enumerate(LAYERS) if part_of(module) in names)


def importers(library: str) -> dict[str, str]:
    """{module: name it imports} for everything at or below `library`."""
    found = {}
    for module, names in IMPORTS.items():
        for name in names:
            if name == library or name.startswith(f"{library}."):
                found[module] = name
    return found


def below(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


# --- the parser itself


def test_imports_are_found_wherever_they_stand() -> None:
    source = """
import os, ray.util as u
from fibec_ray import seeds, __version__
from fibec_ray.model_types import Batch
def f():
    from transformers import AutoConfig
    try:
        import peft
    except ImportError:
        pass
if TYPE_CHECKING:
    import deepspeed
"""
    assert set(imported(source)) == {
        "os", "ray.util", "fibec_ray.seeds", "fibec_ray", "fibec_ray.model_types", "transformers", "peft", "deepspeed",
    }  # fmt: skip


def test_every_module_has_a_layer() -> None:
    assert len(OURS) > 50
    for module in OURS:
        assert any(part_of(module) in names for names in LAYERS), f"{module}: which layer?"


# --- our own modules


@pytest.mark.parametrize("module", OURS)
def test_imports_point_down(module: str) -> None:
    lowest = len(LAYERS) - 1
    for name in IMPORTS[module]:
        if not name.startswith("fibec_ray."):
            continue
        peers = part_of(name) == part_of(module) or layer_of(module) == layer_of(name) == lowest
        assert peers or layer_of(name) > layer_of(module), f"{module} imports {name}, which is not below it"


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a cycle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for name in sorted(IMPORTS[module] & FILES.keys()):
                visit(name, (*path, module))
            done.add(module)

    for module in FILES:
        visit(module, ())


OF_ALL_PARTS = tuple(f"fibec_ray.parts.{name}" for name in ("part", "own", "blame", "hooks"))


def test_an_axis_never_imports_another() -> None:
    """Each folder of parts/ knows itself and part.py. (method.py puts the axes together.)

    The files of parts/ itself are in no folder. They import none.
    """
    for module in OURS:
        if not module.startswith("fibec_ray.parts."):
            continue
        if module in OF_ALL_PARTS:
            ours = {name for name in IMPORTS[module] if name.startswith("fibec_ray.parts.")}
            assert ours <= set(OF_ALL_PARTS), f"{module} imports {ours}"
            continue
        axis = ".".join(module.split(".")[:3])
        for name in IMPORTS[module]:
            if name.startswith("fibec_ray.parts"):
                assert below(name, axis, "fibec_ray.parts.part"), f"{module} imports {name}"


REGISTRIES = {f"fibec_ray.parts.{axis}" for axis in AXES}
ORDINARY_WORDS = {
    "adapter": "what a run saves, and what a generator of random numbers is for",
    "attempt": "a column of the round log",
    "bf16": "a flag of the command line",
    "all": "of checkpoint.keep",
    "fisher": "what a generator of random numbers is for",
    "fp16": "another library's name for a setting",
    "loss": "a column of tables",
    "mean": "a column of tables",
    "median": "a statistic",
    "momentum": "a setting of `local`",
    "moon": "in an exercise",
    "nf4": "how a base with 4 bits is stored",
    "none": "what a message says of an empty list",
    "plain": "of backbone.backend",
    "prompt": "of an instruction",
    "random": "of backbone.init",
}
"""Kinds of parts that are words of other modules too, and what they mean there."""


OUTSIDE_PARTS = [module for module in OURS if part_of(module) != "parts"]
ENGINE = [module for module in OUTSIDE_PARTS if part_of(module) != "bench"]  # a benchmark writes settings of runs


@pytest.mark.parametrize("module", OUTSIDE_PARTS)
def test_the_engine_knows_no_method(module: str) -> None:
    """It sees the contracts of the axes (their base.py), never one of their kinds. method.py has the registries."""
    registries = REGISTRIES if module == "fibec_ray.method" else set()
    for name in IMPORTS[module] - registries:
        if name.startswith("fibec_ray.parts."):
            assert name.endswith(".base") or name in OF_ALL_PARTS, f"{module} imports {name}"


def kinds_named(source: str) -> set[str]:
    """Strings that are kinds of parts: ordinary words only where something called `kind` is compared with them."""
    kinds = {kind for registry in AXES.values() for kind in registry}
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in kinds - ORDINARY_WORDS.keys():
            found.add(node.value)
        if isinstance(node, ast.Compare) and any(getattr(side, "attr", "") == "kind" for side in ast.walk(node)):
            found |= {side.value for side in ast.walk(node) if isinstance(side, ast.Constant)} & kinds
    return found


def test_kinds_are_found_in_a_source() -> None:
    assert kinds_named('x = "krum"; y = "plain"; z = {"adapter": 1}') == {"krum"}
    assert kinds_named('if part.kind == "plain" or "fisher" in (one.kind, 1): pass') == {"plain", "fisher"}
    assert kinds_named('if part.kind in ("all", "mean") and task.kind != "digits": pass') == {"all", "mean"}


@pytest.mark.parametrize("module", ENGINE)
def test_the_engine_names_no_kind(module: str) -> None:
    assert kinds_named(FILES[module].read_text(encoding="utf-8")) == set()


def test_ordinary_words_are_kinds_that_other_modules_use() -> None:
    """So that none stays in the list for no reason."""
    text = "".join(FILES[module].read_text(encoding="utf-8") for module in ENGINE)
    for word in ORDINARY_WORDS:
        assert f'"{word}"' in text and any(word in registry for registry in AXES.values())


def test_models_know_of_the_axes_peft_alone() -> None:
    for module in OURS:
        if part_of(module) == "models":
            parts = {name for name in IMPORTS[module] if name.startswith("fibec_ray.parts")}
            assert parts <= {"fibec_ray.parts.peft.base"}, f"{module} imports {parts}"


ANALYSIS = "fibec_ray.analysis"
API = "fibec_ray.api"
READ_BY_THE_ANALYSIS = ("fibec_ray.roundlog", "fibec_ray.errors", "fibec_ray.environment")


def test_the_analysis_reads_logs_and_nothing_else_of_ours() -> None:
    for module in FILES:
        if below(module, ANALYSIS):
            ours = {name for name in IMPORTS[module] if below(name, "fibec_ray") and not below(name, ANALYSIS)}
            assert all(below(name, *READ_BY_THE_ANALYSIS) for name in ours), f"{module}: {ours}"


def test_only_the_command_the_python_interface_and_tuning_import_the_analysis() -> None:
    """Tuning chooses by the scores that comparisons show."""
    users = ("fibec_ray.cli", API, "fibec_ray.sweeps.choice")
    outside = [module for module in importers(ANALYSIS) if not below(module, ANALYSIS, *users)]
    assert outside == []


# --- libraries and their homes


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("ray", ("fibec_ray.fleets.ray", "fibec_ray.jobs.client", "fibec_ray.cli.prometheus")),
        ("transformers", ("fibec_ray.models", "fibec_ray.parts.peft", *BARE)),
        ("peft", ("fibec_ray.models", "fibec_ray.parts.peft", *BARE)),
        ("flwr", (RIVALS,)),
        ("pfl", (RIVALS,)),
        (
            "pyarrow",
            ("fibec_ray.data", "fibec_ray.roundlog", "fibec_ray.files.storage", "fibec_ray.devices.parquet", ANALYSIS),
        ),  # the analysis handles tables of the log
        ("datasets", ("fibec_ray.data",)),
        ("linear_operator", ("fibec_ray.curvature.spectrum",)),
        ("matplotlib", (ANALYSIS, API)),
        ("polars", (ANALYSIS, API)),
    ],
)
def test_a_library_stays_at_home(library: str, homes: tuple[str, ...]) -> None:
    found = importers(library)
    assert found, f"nothing imports {library}: is this test out of date?"
    for module in found:
        assert below(module, *homes), f"{module} imports {library}, whose home is {', '.join(homes)}"


def test_rivals_stand_alone() -> None:
    """Of ours they import each other, and nothing of ours imports them: they are started as commands."""
    inside = [module for module in FILES if below(module, RIVALS)]
    assert len(inside) > 3
    for module in inside:
        ours = {name for name in IMPORTS[module] if below(name, "fibec_ray")}
        assert all(below(name, RIVALS) for name in ours), f"{module}: {ours}"
    assert all(below(module, RIVALS) for module in importers(RIVALS))


def test_deepspeed_is_imported_in_one_file_at_most() -> None:
    """In models/, behind the same LocalModel as the others."""
    assert len(importers("deepspeed")) <= 1
    assert all(below(module, "fibec_ray.models") for module in importers("deepspeed"))


def test_starting_the_command_imports_nothing_heavy() -> None:
    """`fibec-ray --help` answers at once: at their top level these files import the standard library and each other."""
    light = {
        f"fibec_ray.{name}"
        for name in (
            "cli.argument_types",
            "cli.parsing",
            "cli.completion",
            "cli.start_commands",
            "cli.run_commands",
            "cli.check_commands",
            "cli.result_commands",
            "cli.paper_table_options",
            "cli.report_options",
            "analysis.paper_style",
            "cli.model_commands",
            "cli.sweep_commands",
            "cli.list_commands",
            "cli.job_commands",
            "config.aliases",
            "config.names",
            "cli.main",
            "cli.entry",
            "environment",
            "errors",
            "garbage",
            "interrupts",
            "cli.streams",
        )
    }
    for module in light:
        top = [
            node for node in ast.parse(FILES[module].read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = set(imported("\n".join(ast.unparse(node) for node in top)))
        assert {name for name in names if below(name, "fibec_ray")} <= light
        assert not names & {"yaml", "rich", "torch", "pydantic"}
