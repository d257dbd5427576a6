"""Kinds of backbones and tasks are known where they are made; the rest of the code uses what they can do."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import make_digits, make_tiny
from torch import nn

import fibec_ray
from fibec_ray.answers import Answers
from fibec_ray.config.load import check
from fibec_ray.encoder import Encoder, Reads
from fibec_ray.errors import ConfigError
from fibec_ray.export.load import load
from fibec_ray.learning.job import Job
from fibec_ray.model_types import BatchForm
from fibec_ray.models.base import AnyBackbone
from fibec_ray.models.built import BuiltModel, ModelRequest, SizedModel
from fibec_ray.models.kinds import BACKBONES
from fibec_ray.models.net_model import NetModel, NetOutline
from fibec_ray.models.network import Network, Shape
from fibec_ray.runs.records import read_record
from fibec_ray.runs.simulation import simulate

PACKAGE = Path(fibec_ray.__file__).parent
OWNERS = ("models", "tasks")
"""Packages with kinds. Only code inside a package may ask which of its kinds a value is."""


def imported_from(package: str, source: str) -> set[str]:
    """Names that a file has from a package of ours."""
    root, found = f"fibec_ray.{package}", set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if f"{node.module}.{alias.name}.".startswith(f"{root}."):
                    found.add(alias.asname or alias.name)
        if isinstance(node, ast.Import):
            found |= {alias.asname or root for alias in node.names if f"{alias.name}.".startswith(f"{root}.")}
    return found


def asked(source: str) -> Iterator[str]:
    """Names in the questions of a file for the class of a value."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            yield from _names(*node.args[1:])
        if isinstance(node, ast.Compare) and any(_is_type(side) for side in (node.left, *node.comparators)):
            yield from _names(node.left, *node.comparators)
        if isinstance(node, ast.MatchClass):
            yield from _names(node.cls)


def _is_type(node: ast.AST) -> bool:
    called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "type"
    return called or getattr(node, "attr", "") == "__class__"


def _names(*nodes: ast.AST) -> set[str]:
    walked = [node for each in nodes for node in ast.walk(each)]
    return {getattr(node, "id", "") or getattr(node, "attr", "") for node in walked} - {""}


def test_questions_for_a_class_are_found() -> None:
    source = """
if isinstance(x, Backbone | models.Net) or issubclass(cls, (Mlp, Cnn)) or type(y) is Task or z.__class__ == Points: pass
match x:
    case Outline(): pass
"""
    assert set(asked(source)) >= {"Backbone", "Net", "Mlp", "Cnn", "Task", "Points", "Outline"}
    assert not list(asked("x = Backbone(name='minilm'); y = kind == other"))


def test_names_from_a_package_are_found() -> None:
    source = """
from fibec_ray.models.spec import Backbone as B
from fibec_ray.models import nets
import fibec_ray.models as m
"""
    assert imported_from("models", source) == {"B", "nets", "m"}
    assert imported_from("tasks", source) == set()


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("owner", [owner for owner in OWNERS if (PACKAGE / owner).is_dir()])
def test_nothing_outside_asks_for_a_kind(owner: str) -> None:
    users = 0
    for path in FILES:
        name, source = path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")
        if not name.startswith(f"{owner}/"):
            kinds = imported_from(owner, source)
            users += bool(kinds)
            assert not kinds & set(asked(source)), name
    assert users > 3, "is the name of the package out of date?"


# --- the kinds of backbone


def settings_of(kind: str) -> dict[str, Any]:
    needed = {"image": {"init": "random", "config": {"model_type": "vit"}}}
    return {"kind": kind, **needed.get(kind, {})} if kind else {}


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_of_every_kind_travels_to_actors(kind: str) -> None:
    backbone = BACKBONES[kind].model_validate(settings_of(kind))
    job = Job.model_validate(make_job(backbone))
    again = Job.model_validate(json.loads(job.model_dump_json()))
    assert again.backbone == backbone and type(again.backbone) is BACKBONES[kind]


def make_job(backbone: AnyBackbone) -> dict[str, Any]:
    experiment = check(make_tiny(), "test")
    return (
        experiment.job(Answers(likelihood="categorical", num_scores=2))
        .model_copy(update={"backbone": backbone})
        .model_dump(mode="json")
    )


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_says_what_it_has(kind: str) -> None:
    backbone = BACKBONES[kind].model_validate(settings_of(kind))
    assert (backbone.prepared_folder(0, 2, Path("cache")) is None) == (not backbone.has_base)
    assert backbone.has_base or backbone.fingerprint(None) == ""
    assert (backbone.preprocessor() is None) == (backbone.reads == "numbers")


# --- a user-defined backbone


class Bottleneck(AnyBackbone, frozen=True, extra="forbid"):
    """A linear model of few numbers of a sample."""

    kind: Literal["bottleneck"] = "bottleneck"
    size: int = 4

    @property
    def num_layers(self) -> int:
        return 1

    @property
    def title(self) -> str:
        return "backbone bottleneck"

    @property
    def reads(self) -> Reads:
        return "numbers"

    def describe(self, base: str | None, seed: int) -> str:
        return f"a bottleneck of size {self.size}"

    def fit(self, sets: Sequence[Any], encoder: Encoder, words: Sequence[int] = ()) -> list[Any]:
        return list(sets)

    def network(self, shape: Shape, num_scores: int) -> Network:
        return Network(
            [nn.Linear(shape[-1], self.size)], nn.Tanh(), nn.Linear(self.size * shape[0] * shape[1], num_scores)
        )

    def build(
        self, request: ModelRequest, base: Any = None, device: str = "cpu", beside: int | None = None
    ) -> BuiltModel:
        return NetModel(self, request.shape, request.answers, request.seed, device)

    def outline(self, request: ModelRequest, form: BatchForm, num_blocks: int | None = None) -> SizedModel:
        return NetOutline(self, form, request.answers, request.seed)


@pytest.fixture
def bottleneck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "bottleneck", Bottleneck)


@pytest.mark.usefixtures("bottleneck")
def test_a_new_kind_trains_and_is_saved_and_predicts(tmp_path: Path) -> None:
    experiment = check(
        make_digits("fedavg", backbone={"kind": "bottleneck", "size": 3}, evaluation={"every": 1}), "test"
    )
    run = simulate(experiment, tmp_path / "run")
    assert run.rows[-1]["global_loss"] < run.rows[1]["global_loss"]
    assert read_record(tmp_path / "run").experiment.backbone == Bottleneck(size=3)
    model = load(tmp_path / "run")
    assert model.scores(torch.zeros(2, 1, 8, 8).numpy()).shape == (2, 10)
    assert "a bottleneck of size 3" in (tmp_path / "run" / "adapter" / "README.md").read_text()
    load(tmp_path / "run", device=0)


@pytest.mark.usefixtures("bottleneck")
def test_a_new_kind_is_refused_for_a_task_that_it_cannot_read() -> None:
    with pytest.raises(ConfigError, match="backbone bottleneck takes numbers, but task synthetic is text"):
        check(make_tiny() | {"backbone": {"kind": "bottleneck"}}, "test")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such kind 'bottleneck'.*cnn, image, mlp"):
        check(make_digits("fedavg", backbone={"kind": "bottleneck"}), "test")
