"""Parts of a user's own: how a kind finds its class, and every way in which that can fail."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import ValidationError

from fibec_ray.config.load import load_experiment, load_method, with_path
from fibec_ray.errors import ConfigError, FleetError
from fibec_ray.method import Method
from fibec_ray.parts import own
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.part import sources_of

RULES = """
from __future__ import annotations
from abc import abstractmethod
from pydantic import Field
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.objective.base import Objective

class ClippedMean(Aggregator):
    most: float = Field(1.0, gt=0)

class Further(ClippedMean):
    kind: str = "mean"

class Bent(Objective):
    pass

class Unfinished(Aggregator):
    @abstractmethod
    def pick(self) -> int: ...

class Alone:
    pass

def function() -> None: ...
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(RULES)
    return path


def refusal(kind: object, axis: str = "aggregator") -> str:
    with pytest.raises(ValidationError) as caught:
        Method.model_validate({axis: {"kind": kind}})
    message = caught.value.errors()[0]["msg"]
    assert "\n" not in message
    return message


def test_a_class_in_a_file_is_a_part_and_comes_back_from_its_fields(rules: Path) -> None:
    method = Method.model_validate({"aggregator": {"kind": f"{rules}:ClippedMean", "most": 2}})
    assert method.aggregator.kind == "my_rules.py:ClippedMean" and method.aggregator.most == 2  # type: ignore[attr-defined]
    assert Method.model_validate(method.model_dump()) == method
    assert Method.model_validate_json(method.model_dump_json()) == method
    assert Method(aggregator=type(method.aggregator)()).aggregator.kind == "my_rules.py:ClippedMean"


def test_its_place_names_it_and_not_a_kind_that_it_declares(rules: Path) -> None:
    found = Method.model_validate({"aggregator": f"{rules}:Further"}).aggregator
    assert found.kind == "my_rules.py:Further" and type(found).__name__ == "Further"


def test_it_stands_below_a_server_optimiser(rules: Path) -> None:
    method = Method.model_validate({"aggregator": {"kind": "adam", "of": f"{rules}:ClippedMean"}})
    assert list(sources_of(method.aggregator)) == ["my_rules.py"]
    assert Method.model_validate(method.model_dump()) == method


class Here(Aggregator):
    kind: Literal["here"] = "here"  # type: ignore[assignment]


def test_a_class_in_a_module_is_named_by_it() -> None:
    kind = f"{__name__}:Here"
    assert Here().kind == kind and Method.model_validate({"aggregator": kind}).aggregator == Here()
    source = sources_of(Here())[__name__]
    assert source.name == __name__ and source.text is None and len(source.digest) == 32


def test_a_class_made_in_a_function_is_known_in_its_process() -> None:
    class Local(Aggregator):
        weight: int = 1

    method = Method(aggregator=Local(weight=3))
    assert Method.model_validate(method.model_dump()) == method


def test_another_text_is_another_class(rules: Path) -> None:
    old = Method.model_validate({"aggregator": f"{rules}:ClippedMean"})
    rules.write_text(RULES.replace("1.0, gt=0", "5.0, gt=0"))
    new = Method.model_validate({"aggregator": f"{rules}:ClippedMean"})
    assert (old.aggregator.most, new.aggregator.most) == (1, 5)  # type: ignore[attr-defined]
    assert sources_of(old.aggregator) != sources_of(new.aggregator)


@pytest.mark.parametrize(
    "kind", [":", "x:", ":X", "a.py:b:c", "a.py:", ".py", "my_rules.py", "a b:X", "a:1", "a.py:b c"]
)
def test_what_names_no_class_is_refused_with_the_two_forms(kind: str) -> None:
    message = refusal(kind)
    assert repr(kind) in message or "not a module name" in message or "a file name may have" in message
    assert "FILE.py:CLASS" in message or "rename" in message


@pytest.mark.parametrize("kind", [3, None, 2.5, True, ["a"], "no_such"])
def test_what_is_no_kind_is_refused_with_those_that_are(kind: object) -> None:
    assert "no such kind" in refusal(kind) and "median" in refusal(kind)


def test_a_misspelt_file_or_class_is_refused_with_the_nearest(rules: Path) -> None:
    assert refusal(f"{rules.parent}/my_rule.py:ClippedMean").endswith("no such file; did you mean 'my_rules.py'?")
    assert refusal(f"{rules}:ClippedMeen").endswith("has no class 'ClippedMeen'; did you mean 'ClippedMean'?")
    assert "did you mean 'Bent'?" in refusal(f"{rules}:Bend", "objective")
    assert "paths are relative to the YAML" in refusal(f"{rules.parent}/none/my_rules.py:ClippedMean")


def test_a_class_that_does_not_fit_the_axis_is_refused(rules: Path) -> None:
    assert "set method.objective" in refusal(f"{rules}:Bent")
    assert "make it a subclass of fibec_ray.parts.aggregator.base.Aggregator" in refusal(f"{rules}:Alone")
    assert "make it a subclass" in refusal(f"{rules}:function") and "make it a subclass" in refusal("json:JSONDecoder")
    assert "lacks methods" in refusal(f"{rules}:Unfinished") and "pick" in refusal(f"{rules}:Unfinished")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\nclass A(:\n", "line 2: SyntaxError"),
        ("import no_such_library\n", "line 1: ModuleNotFoundError: No module named 'no_such_library'; a file"),
        ("x = 1\n\nraise KeyError('a\\nb')\n", "line 3: KeyError"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("class Odd(BaseException): pass\nraise Odd\n", "line 2: Odd: no message"),
        ("def f(): f()\nf()\n", "RecursionError"),
        ("(" * 300, "line 1: SyntaxError"),
        ("x = '\\0'\0", "null bytes"),
        ("", "has no class 'A'; allowed: none"),
        ("from fibec_ray.parts.aggregator.base import Aggregator\nclass B(Aggregator):\n    x: 3 = 1\n", "line 2:"),
    ],
)  # fmt: skip
def test_a_file_that_fails_is_one_line_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    before = set(sys.modules)
    for _ in range(2):
        message = refusal(f"{path}:A")
        assert expected in message and str(path) in message
    assert text == "" or not {name for name in set(sys.modules) - before if name.startswith("_fibec_ray_own")}


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "huge.py").write_bytes(b"#" * (own.MOST_BYTES + 1))
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "nowhere.py").symlink_to(tmp_path / "gone")
    (tmp_path / "circle.py").symlink_to(tmp_path / "circle.py")
    (tmp_path / ".hidden.py").write_text("")
    expected = {
        "binary": "UTF-8", "huge": "larger than 1 MB", "folder": "not a regular file", "nowhere": "no such file",
        "circle": "cannot be read", ".hidden": "rename the file",
    }  # fmt: skip
    for name, words in expected.items():
        assert words in refusal(f"{tmp_path}/{name}.py:A")


def test_a_class_of_a_program_or_of_a_function_is_refused_where_it_cannot_be_found_again(rules: Path) -> None:
    assert "put the class into a file and name it FILE.py:CLASS" in refusal("__main__:ClippedMean")
    rules.write_text(f"{RULES}\ndef make():\n    class Inner(Aggregator): pass\n    return Inner\nMade = make()\n")
    assert "is make.<locals>.Inner, which other processes cannot import; move it to the top level" in refusal(
        f"{rules}:Made"
    )


def test_a_link_is_followed(tmp_path: Path, rules: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked.py").symlink_to(rules)
    assert Method.model_validate({"aggregator": f"{tmp_path}/elsewhere/linked.py:ClippedMean"})


def test_ctrl_c_is_never_taken_for_a_mistake_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        Method.model_validate({"aggregator": f"{tmp_path}/waits.py:A"})


def test_what_a_file_prints_is_kept_out_of_what_a_command_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "speaks.py").write_text(f"print('hello')\n{RULES.replace('from __future__ import annotations', '')}")
    assert Method.model_validate({"aggregator": f"{tmp_path}/speaks.py:ClippedMean"})
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "hello\n"


def test_modules_that_cannot_be_imported_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package_for_tests").mkdir()
    (tmp_path / "own_package_for_tests" / "__init__.py").write_text("")
    (tmp_path / "own_package_for_tests" / "fails.py").write_text("import sys\nsys.exit()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "no module 'no_such' is installed" in refusal("no_such.rules:X") and "rules.py:CLASS" in refusal(
        "no_such.rules:X"
    )
    assert "no module 'own_package_for_tests.no' is installed" in refusal("own_package_for_tests.no:X")
    assert "cannot be imported: SystemExit" in refusal("own_package_for_tests.fails:X")


# --- entry points


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (
        EntryPoint("here", f"{__name__}:Here", own.GROUP),
        EntryPoint("mean", f"{__name__}:Here", own.GROUP),
        EntryPoint("gone", "no_such_package:X", own.GROUP),
    )
    monkeypatch.setattr(own, "_entry_points", lambda: points)


def test_an_installed_package_is_asked_for_what_it_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "rules_for_tests-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: rules-for-tests\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{own.GROUP}]\nclipped_for_tests = rules_for_tests:ClippedMean\n")
    (tmp_path / "rules_for_tests.py").write_text(RULES)
    monkeypatch.syspath_prepend(tmp_path)
    own._entry_points.cache_clear()
    found = Method.model_validate({"aggregator": {"kind": "clipped_for_tests", "most": 2}}).aggregator
    assert found.kind == "rules_for_tests:ClippedMean"
    own._entry_points.cache_clear()


@pytest.mark.usefixtures("offered")
def test_a_package_offers_parts_under_short_names() -> None:
    method = Method.model_validate({"aggregator": "here"})
    assert method.aggregator == Here() and Method.model_validate(method.model_dump()) == method
    assert "did you mean 'here'?" in refusal("heree")


@pytest.mark.usefixtures("offered")
def test_a_kind_of_this_package_is_never_replaced() -> None:
    assert (
        type(Method.model_validate({"aggregator": "mean"}).aggregator).__module__ == "fibec_ray.parts.aggregator.mean"
    )


@pytest.mark.usefixtures("offered")
def test_an_offer_that_does_not_hold_is_one_line() -> None:
    assert "'gone' from an installed package: no module 'no_such_package' is installed" in refusal("gone")
    assert "set method.aggregator" in refusal("here", "objective")


# --- from YAML


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(yaml.safe_dump(value))
    return path


EXPERIMENT: dict[str, object] = {
    "name": "x",
    "rounds": 1,
    "num_devices": 2,
    "cohort_size": 1,
    "task": "digits",
    "backbone": {"kind": "mlp"},
}


def test_files_are_beside_the_yaml_that_names_them(
    rules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    config = write(tmp_path / "a" / "e.yaml", EXPERIMENT | {"method": {"aggregator": "../my_rules.py:ClippedMean"}})
    assert load_experiment(config).method.aggregator.kind == "my_rules.py:ClippedMean"
    named = write(tmp_path / "m.yaml", {"aggregator": {"kind": "my_rules.py:ClippedMean", "most": 3}})
    assert load_method(named).aggregator.most == 3  # type: ignore[attr-defined]
    other = write(tmp_path / "a" / "f.yaml", EXPERIMENT | {"method": str(named)})
    found = load_experiment(other, ["method.aggregator.most=4"])
    assert found.method.aggregator.most == 4  # type: ignore[attr-defined]
    plain = write(tmp_path / "a" / "g.yaml", EXPERIMENT)
    monkeypatch.setenv("HOME", str(tmp_path))
    at_home = load_experiment(plain, ["method.aggregator=~/my_rules.py:ClippedMean"])
    assert at_home.method.aggregator.kind == "my_rules.py:ClippedMean"
    for text in ("method.aggregator=../my_rules.py:ClippedMean", "method={aggregator: ../my_rules.py:ClippedMean}"):
        assert load_experiment(plain, [text]).method.aggregator.kind == "my_rules.py:ClippedMean"
    wrapped = ["method.aggregator=adam", "method.aggregator.of=../my_rules.py:ClippedMean"]
    assert load_experiment(plain, wrapped).method.aggregator.of.kind == "my_rules.py:ClippedMean"  # type: ignore[attr-defined]


def test_an_override_in_a_file_is_seen_from_that_file(rules: Path, tmp_path: Path) -> None:
    text = with_path("method.aggregator=my_rules.py:ClippedMean", tmp_path)
    assert load_experiment(write(tmp_path / "a" / "g.yaml", EXPERIMENT), [text]).method.aggregator.kind.startswith(
        "my_"
    )
    assert (
        with_path("rounds=3", tmp_path) == "rounds=3" and with_path("method.mask=none", tmp_path) == "method.mask=none"
    )


def test_a_mistake_names_the_yaml_the_key_and_the_file(rules: Path, tmp_path: Path) -> None:
    def message(aggregator: object) -> str:
        with pytest.raises(ConfigError) as caught:
            load_experiment(write(tmp_path / "e.yaml", EXPERIMENT | {"method": {"aggregator": aggregator}}))
        return str(caught.value)

    assert "cannot be read (File name too long)" in message(f"{'a' * 300}.py:X")
    where = f"{tmp_path}/e.yaml: method.aggregator: "
    assert message("my_rule.py:X") == f"{where}{tmp_path}/my_rule.py: no such file; did you mean 'my_rules.py'?"
    assert message({"kind": "my_rules.py:ClippedMean", "mots": 1}).endswith("mots: no such key; did you mean 'most'?")
    assert "most: input should be greater than 0" in message({"kind": "my_rules.py:ClippedMean", "most": -1})


# --- on the way to another process


@pytest.mark.slow
def test_a_part_brings_its_file_to_a_process_that_has_none(rules: Path, tmp_path: Path) -> None:
    method = Method.model_validate({"aggregator": {"kind": f"{rules}:ClippedMean", "most": 2}})
    (tmp_path / "packed").write_bytes(pickle.dumps(method))
    rules.unlink()
    program = (
        "import pickle, sys; a = pickle.load(open(sys.argv[1], 'rb')).aggregator; "
        "print(a.kind, a.most, type(a).model_validate(a.model_dump()) == a)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "packed")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.stdout == "my_rules.py:ClippedMean 2.0 True\n", done.stderr


def test_a_module_that_differs_on_the_other_side_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pickle.dumps(Here())
    assert pickle.loads(packed) == Here()
    kind, source = Here().kind, sources_of(Here())[__name__]
    with pytest.raises(
        FleetError, match="node .*differs from the version that the run started with; install the same version"
    ):
        own.unpickled(kind, own.Source(source.name, "0" * 32, None))
    with pytest.raises(FleetError, match="node .*no module 'no_such' is installed"):
        own.unpickled("no_such:X", own.Source("no_such", "0", None))


def test_a_class_that_only_its_process_can_have_does_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(Aggregator):
        weight: int = 1

    packed = pickle.dumps(Local(weight=2))
    assert pickle.loads(packed) == Local(weight=2)
    monkeypatch.setattr(own, "_known", {})
    with pytest.raises(FleetError, match="move it to the top level of a file or module"):
        pickle.loads(packed)
