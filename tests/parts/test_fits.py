"""What parts say of each other in their own files is what a method is checked by."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

import pytest
from pydantic import ValidationError

from fibec_ray.method import AXES, Method, neutral
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.aggregator.over_factors import HetLora
from fibec_ray.parts.aggregator.server_optimisers import Adam
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.part import LACKING, Need, Part, Setting, kinds_of
from fibec_ray.parts.solver.base import Solver

PARTS = [(axis, kind, cls()) for axis, registry in AXES.items() for kind, cls in registry.items()]


@pytest.mark.parametrize(("axis", "kind", "part"), PARTS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_a_part_names_is_there(axis: str, kind: str, part: Part) -> None:
    for other, partner in ((other, kind) for other, kinds in part.partners.items() for kind in kinds_of(kinds)):
        assert other != axis and partner in AXES[other]
        assert all(hasattr(one, field) for one in (part, AXES[other][partner]()) for field in part.agrees)
    assert not part.agrees or part.partners
    assert axis not in part.silences and part.silences.keys() <= AXES.keys() and all(part.silences.values())
    assert not set(part.needs) & set(part.lacks)
    assert {*part.needs, *part.lacks} <= LACKING.keys()


def test_every_word_for_a_need_has_its_sentence_and_is_used() -> None:
    assert LACKING.keys() == set(get_args(Need))
    by_settings = {"classes", "personal", "moving", "position", "weights", "one_rank"}
    assert {need for _, _, part in PARTS for need in part.needs} >= LACKING.keys() - by_settings
    for sentence in LACKING.values():
        fields = {field for _, field, _, _ in string.Formatter().parse(sentence) if field}
        assert fields <= {"other", "axis", "neutral", "able", "undo"} and "; " in sentence  # why; what to do


def test_a_word_of_the_experiment_is_lacked_by_no_part() -> None:
    """Then the message is about the task or the backbone and names no parts."""
    lacked = {need for _, _, part in PARTS for need in part.lacks} | {"personal", "moving", "whole", "one_rank"}
    for need in LACKING.keys() - lacked:
        assert LACKING[need].format(other="it")


class Ground(Solver):
    height: float = 1.0


GROUND = Ground().kind


class Tower(Objective):
    """Made up: it asks for everything that a part can ask for."""

    height: float = 1.0
    partners: ClassVar[Mapping[str, str]] = {"solver": GROUND}
    agrees: ClassVar[tuple[str, ...]] = ("height",)
    silences: ClassVar[Mapping[str, str]] = {"mask": "is seen from everywhere"}

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("shared", "whole")


TOWER = Tower().kind


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"solver": Solver()}, f"objective '{TOWER}' needs solver '{GROUND}', found 'single'; set both, or neither"),
        (
            {"objective": Tower(height=2)},
            f"objective.height 2.0 and solver.height 1.0 of {GROUND} differ; make them equal",
        ),
        (
            {"sharing": "gal", "mask": "random_neurons"},
            f"objective '{TOWER}' is seen from everywhere, so mask 'random_neurons' has no effect; leave it out",
        ),
        ({"sharing": "none"}, f"objective '{TOWER}' needs shared tensors, but sharing 'none' shares nothing; set obj"),
        (
            {"peft": {"take_turns": True}},
            f"objective '{TOWER}' needs every device to send .*, but peft 'lora' has different ranks .*; set one of: "
            "plain, proximal, adalora, rank",
        ),
    ],
)
def test_a_part_of_a_user_s_own_is_taken_at_its_word(parts: dict[str, Any], says: str) -> None:
    fine: dict[str, Any] = {"objective": Tower(), "solver": Ground()}
    assert Method.model_validate(fine).objective == Tower()
    with pytest.raises(ValidationError, match=says):
        Method.model_validate(fine | parts)


class Below(Mean):
    """Made up: an aggregator with a partner."""

    partners: ClassVar[Mapping[str, str]] = {"solver": GROUND}


def test_a_part_within_another_is_taken_at_its_word() -> None:
    assert Method(solver=Ground(), aggregator=Adam(of=Below()))
    with pytest.raises(ValidationError, match=f"aggregator '{Below().kind}' needs solver '{GROUND}', found 'single'"):
        Method(aggregator=Adam(of=Below()))


class Misspelt(Tower):
    """Made up: the test sets one of its words to one that is not there."""

    partners: ClassVar[Mapping[str, str]] = {}
    agrees: ClassVar[tuple[str, ...]] = ()
    silences: ClassVar[Mapping[str, str]] = {}


@pytest.mark.parametrize(
    ("hook", "value", "says"),
    [
        ("needs", ("shard",), "shard'; did you mean 'shared'?"),
        ("needs", "text", "t'; allowed: classes, "),
        ("lacks", ("holes",), "holes'; did you mean 'whole'?"),
        ("partners", {"solvr": "single"}, "solvr'; did you mean 'solver'?"),
        ("silences", {"masks": "is loud"}, "masks'; did you mean 'mask'?"),
        ("agrees", ("hight",), "hight'; did you mean 'height'?"),
    ],
)
def test_a_misspelt_word_of_a_part_is_named(hook: str, value: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Misspelt, hook, value)
    with pytest.raises(ValidationError, match=re.escape(f"objective '{Misspelt().kind}' says '{says}")):
        Method(objective=Misspelt())


class OwnHetLora(HetLora):
    """A user's own version of a half."""


class OwnMean(Mean):
    """The same of the neutral aggregator."""


def test_a_part_goes_with_a_user_s_own_version_of_its_partner() -> None:
    assert Method(objective="rank_pruning", aggregator=OwnHetLora())
    with pytest.raises(ValidationError, match="needs aggregator 'hetlora', found '.*OwnMean'"):
        Method(objective="rank_pruning", aggregator=OwnMean())
    with pytest.raises(ValidationError, match="needs peft 'lora', found 'delta_lora'"):  # LoRA, but not that LoRA
        Method(peft="delta_lora", aggregator=OwnHetLora())


def test_the_neutral_parts_need_nothing_of_each_other() -> None:
    fits = Setting(1, 1, "adamw", 0.9, "bfloat16", 0)
    for axis in AXES:
        part = neutral(axis)
        assert not (part.partners or part.silences) and part.unfit_for(fits) is None
        assert axis == "peft" or not part.needs
