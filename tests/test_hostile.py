"""Nothing that is read can run code: no pickle, no code of a model's author, no YAML tags; in source and at work."""

from __future__ import annotations

import ast
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs.interrupted import interrupted
from test_layering import FILES

from fibec_ray.errors import FibecError
from fibec_ray.runs.replay import replay
from fibec_ray.runs.resume import resume
from fibec_ray.runs.verify import verify

UNPICKLES = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "torch.load",
    "pandas.read_pickle",
}
"""Modules and functions that run what a file tells them to. (Ray pickles messages between its own processes.)"""
UNSAFE_YAML = {"load", "load_all", "full_load", "unsafe_load", "FullLoader", "UnsafeLoader", "Loader"}


def names_in(tree: ast.AST) -> Iterator[str]:
    """'pickle' where it is imported, 'torch.load' where it is used."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module or ""
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def calls_in(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def is_false(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_no_source_file_unpickles() -> None:
    for module, tree in TREES.items():
        assert not UNPICKLES & set(names_in(tree)), module
        for name, options in calls_in(tree):
            assert name not in ("np.load", "numpy.load") or is_false(options.get("allow_pickle")), f"{module}: {name}"


def test_no_source_file_takes_yaml_tags() -> None:
    unsafe = {f"yaml.{name}" for name in UNSAFE_YAML}
    for module, tree in TREES.items():
        assert not unsafe & set(names_in(tree)), module


def test_no_source_file_runs_a_model_author_s_code() -> None:
    """A table of embeddings that is made from a tensor has no author."""
    found = 0
    for module, tree in TREES.items():
        for name, options in calls_in(tree):
            if name.endswith((".from_pretrained", ".from_config")) and name != "nn.Embedding.from_pretrained":
                found += 1
                assert is_false(options.get("trust_remote_code")), f"{module}: {name}"
    assert found > 3, "is this test out of date?"


def test_the_scan_finds_what_it_is_for() -> None:
    bad = ast.parse("import pickle\nfrom torch import load\nimport yaml\nx = torch.load(f)\ny = yaml.unsafe_load(f)")
    found = set(names_in(bad))
    assert {"pickle", "torch.load", "yaml.unsafe_load"} <= found


# --- at work

WATCHED: list[list[object]] = []


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if WATCHED and event == "pickle.find_class":
        WATCHED[-1].append(arguments)


sys.addaudithook(_hook)


@pytest.fixture
def unpickled() -> Iterator[list[object]]:
    """What the interpreter looks up for a pickle while the test runs, whoever reads it."""
    WATCHED.append([])
    yield WATCHED[-1]
    WATCHED.pop()


@pytest.fixture(scope="module")
def broken_off(tiny_settings: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interrupted(tiny_settings("fibecfed", rounds=3), tmp_path_factory.mktemp("broken") / "run", 2 * 3 + 1)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, canary: Path):
        self._canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self._canary,)


def test_the_watch_sees_a_pickle(unpickled: list[object], tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert unpickled and (tmp_path / "canary").exists()


def test_a_run_that_is_resumed_verified_and_replayed_unpickles_nothing(
    unpickled: list[object], broken_off: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(broken_off, tmp_path / "run"))
    assert resume(folder) is not None
    assert verify(folder, 1).differences == [] == replay(folder, -1, 0).differences
    assert unpickled == []


KINDS = [
    "config.yaml",
    "summary.json",
    "checkpoints/run.json",
    "checkpoints/rounds/000002/manifest.json",
    "checkpoints/rounds/000002/server.safetensors",
    "checkpoints/devices/*/*.safetensors",
    "rounds/part-000001.parquet",
    "data/train/tokens.npy",
    "data/train_rows.npy",
    "data/train/set.json",
]
"""One of each kind of file that a resumed run reads."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_in_place_of_a_file_is_never_run(kind: str, broken_off: Path, tmp_path: Path) -> None:
    """Some are refused, for some the checkpoint before is used; that is tested elsewhere."""
    folder, canary = Path(shutil.copytree(broken_off, tmp_path / "run")), tmp_path / "canary"
    paths = list(folder.glob(kind))
    assert paths
    for path in paths:
        path.write_bytes(pickle.dumps(Bomb(canary)))
    for act in (resume, verify):
        try:
            act(folder)
        except FibecError as error:
            assert str(error)
    assert not canary.exists()


def test_a_tag_in_yaml_is_never_run(broken_off: Path, tmp_path: Path) -> None:
    folder, canary = Path(shutil.copytree(broken_off, tmp_path / "run")), tmp_path / "canary"
    (folder / "config.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(FibecError, match="not YAML"):
        resume(folder)
    assert not canary.exists()
