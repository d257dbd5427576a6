"""Parts of a user's own: classes in a file, in an installed module, or offered by a package as an entry point.

A kind with a colon names such a class: `my_rules.py:ClippedMean` is in a file, `my_package.rules:ClippedMean` in a
module. A package may give its classes short names with entry points of the group `fibec_ray.parts`. Naming a class
runs the file or module that it is in.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import linecache
import os
import platform
import re
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import PydanticUndefinedAnnotation, PydanticUserError

from fibec_ray.errors import FleetError, did_you_mean
from fibec_ray.files.run_dir import failing_plainly, write_text

GROUP = "fibec_ray.parts"
MOST_BYTES = 1_000_000
"""Of a file with parts. It travels to every actor."""
FORMS = "FILE.py:CLASS or MODULE:CLASS, such as my_rules.py:ClippedMean"
FIELDS = (
    "write a hyper-parameter as NAME: TYPE = DEFAULT, of a type that YAML has and the file imports, and anything else "
    "as NAME: ClassVar = VALUE"
)
NOT_AT_THE_TOP = "other processes cannot have this class: it is not at the top level of a file or module; put it there"
_known: dict[str, type[Any]] = {}
"""The newest class of each kind in this process."""


@dataclass(frozen=True)
class Source:
    """Where a class comes from. The text of a file travels with a run; a module is installed wherever it is needed."""

    name: str
    """my_rules.py, or my_package.rules"""
    digest: str
    text: str | None
    path: str = field(default="", compare=False)
    """on the machine where it was read"""


def find(kind: str, contract: type[Any]) -> type[Any] | None:
    """The user's class that a kind names; None for a word that no package offers. Runs its file or module.

    contract: the base class of its axis. Raises ValueError with what is wrong, and what to do.
    """
    if kind in _known:
        return checked(_known[kind], kind, contract)
    place, colon, name = kind.rpartition(":")
    if not colon and not kind.endswith(".py"):
        return _offered(kind, contract)
    if not place or not name.isidentifier() or (":" in place and not place.endswith(".py")):
        raise ValueError(f"{kind!r} names no class; expected {FORMS}")
    module = load(place)
    if name not in vars(module):
        raise ValueError(f"{place}: has no class {name!r}; {did_you_mean(name, classes_in(module, contract))}")
    found = checked(vars(module)[name], kind, contract)
    if is_own(found) and "." in found.__qualname__:
        raise ValueError(f"{kind}: is {found.__qualname__}, which a run cannot find again; move it to the top level")
    return found


def checked(found: Any, kind: str, contract: type[Any]) -> type[Any]:
    """The class, if a method can have it on the axis. Raises ValueError."""
    base = f"{contract.__module__}.{contract.__name__}"
    if not isinstance(found, type) or not issubclass(found, contract):
        if other := _axis_of(found, contract):
            raise ValueError(f"{kind}: is a part for {other}, not for {contract.__name__.lower()}; set method.{other}")
        raise ValueError(f"{kind}: is no part for {contract.__name__.lower()}; make it a subclass of {base}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(vars(found)["__abstractmethods__"]))
        raise ValueError(f"{kind}: lacks methods that {base} asks for: {missing}; write them")
    try:
        found.model_rebuild()  # type: ignore[attr-defined]  # what the file named before it defined it
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise ValueError(f"{kind}: {_what_failed(error, '')}") from error
    return found


def classes_in(module: ModuleType, contract: type[Any]) -> dict[str, type[Any]]:
    """The parts of one axis that a module defines itself. contract: the base class of the axis, or Part for all."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, contract) and value.__module__ == module.__name__
    }


def is_own(cls: type[Any]) -> bool:
    """False for a class of this package."""
    return not cls.__module__.startswith("fibec_ray.")


def name_kind(cls: type[Any]) -> str:
    """The kind of a class of a user's own that has just been made: where it is."""
    kind = f"{source_of(cls).name}:{cls.__qualname__}"
    _known[kind] = cls
    return kind


def load(place: str) -> ModuleType:
    """Runs a file with parts, or imports a module. Raises ValueError."""
    return load_file(Path(place)) if place.endswith(".py") else _imported(place)


def load_file(path: Path) -> ModuleType:
    """Runs a file with parts, once for each content. Raises ValueError."""
    text = _read(path)
    return _run(Source(path.name, digest(text), text, os.path.abspath(path)), str(path))


def arrived(kind: str, source: Source) -> Any:
    """A part without its fields yet, which another process sent. Raises FleetError if its class cannot be had here."""
    cls = _known.get(kind)
    if cls is not None and source_of(cls) == source:
        return object.__new__(cls)
    found = vars(arrive(source)).get(kind.rpartition(":")[2])
    if found is None:
        raise FleetError(f"{kind}: {NOT_AT_THE_TOP}")
    return object.__new__(found)


def arrive(source: Source) -> ModuleType:
    """The module of a source that another process sent. Raises FleetError if it cannot be had here."""
    try:
        module = _run(source, source.name) if source.text is not None else _imported(source.name)
        if _source(module) != source:
            raise ValueError("is another one than the run began with; install the same version on every node")
        return module
    except ValueError as error:
        raise FleetError(f"{source.name}: node {platform.node()}: {error}") from error


def source_of(cls: type[Any]) -> Source:
    """Of the module that a class was defined in."""
    module = sys.modules.get(cls.__module__)
    return _source(module) if module is not None else Source(cls.__module__, "", None)


def keep_files(sources: Mapping[str, Source], folder: Path) -> None:
    """Writes the files into a folder `parts` beside a YAML that names them. Raises RunDirError."""
    for name, source in sources.items():
        if source.text is not None:
            path = folder / "parts" / name
            with failing_plainly(folder):
                path.parent.mkdir(exist_ok=True)
            write_text(path, source.text)


def offered_names() -> list[str]:
    return [point.name for point in _entry_points()]


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _offered(name: str, contract: type[Any]) -> type[Any] | None:
    """Kinds are unique on an axis; packages may use one name on several."""
    values = {point.value for point in _entry_points() if point.name == name}
    found, reason = [], None
    for value in sorted(values):
        try:
            found.append(find(value.replace(" ", ""), contract))
        except ValueError as error:
            reason = error
    if len(found) > 1:
        raise ValueError(f"{name!r} is offered by several packages; name one of them: {', '.join(sorted(values))}")
    if not found and reason is not None:
        raise ValueError(f"{name!r} of an installed package: {reason}") from reason
    return found[0] if found else None


def _axis_of(found: Any, contract: type[Any]) -> str | None:
    """The axis of a part that belongs to another one; None for anything else."""
    root = contract.__bases__[0]
    bases = found.__mro__ if isinstance(found, type) else ()
    return next((cls.__name__.lower() for cls in bases if root in cls.__bases__ and not is_own(cls)), None)


def _read(path: Path) -> str:
    """Raises ValueError."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: is a folder, or no ordinary file; give the path of a Python file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        names = [each.name for each in path.parent.glob("*.py")]
        seen_from = "paths are seen from the YAML that names them, and on the command line from the current folder"
        raise ValueError(f"{path}: no such file; {did_you_mean(path.name, names) if names else seen_from}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give the path of a Python file") from error
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"{path}: is larger than {MOST_BYTES / 1e6:.0f} MB, too much for a file that travels to every actor; keep "
            "code alone in it"
        )
    if not re.fullmatch(r"\w[\w .+-]*\.py", path.name):
        raise ValueError(f"{path}: its name may have letters, digits, '_' and '-' before .py; rename it")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text in UTF-8 ({error.reason} at byte {error.start})") from error


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _source(module: ModuleType) -> Source:
    known = getattr(module, "__own_source__", None)
    if isinstance(known, Source):
        return known
    file = getattr(module, "__file__", None) or ""
    try:
        found = digest(Path(file).read_bytes().decode(errors="replace")) if file else ""
    except OSError:
        found = ""
    source = Source(module.__name__, found, None, file)
    vars(module)["__own_source__"] = source  # of the code that runs, even if the file is edited later
    return source


def _run(source: Source, where: str) -> ModuleType:
    """The module that a file's text makes. Its name says its content: another text is another module."""
    name = f"_fibec_ray_own_{digest(source.name + source.digest)}"
    module = sys.modules.get(name)
    if module is None:
        module = ModuleType(name, f"{where}, run by fibec_ray")
        module.__file__ = where
        vars(module)["__own_source__"] = source  # classes ask for it while they are made
        sys.modules[name] = module
        text = source.text or ""
        linecache.cache[where] = (len(text), None, text.splitlines(keepends=True), where)
        try:
            with redirect_stdout(sys.stderr):  # what a command prints may be read by a program
                exec(compile(text, where, "exec", dont_inherit=True), vars(module))
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, KeyboardInterrupt):
                raise
            raise ValueError(f"{where}: {_what_failed(error, where)}") from error
    vars(module)["__own_source__"] = source
    _known.update(
        {
            f"{source.name}:{cls.__qualname__}": cls
            for cls in vars(module).values()
            if isinstance(cls, type) and cls.__module__ == name
        }
    )
    return module


def _imported(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{name!r} is no name of a module; expected {FORMS}")
    if name == "__main__":
        raise ValueError(
            "__main__ is the program that was started, or a notebook, which no other process has; put the class into a "
            "file and name it FILE.py:CLASS"
        )
    if name in sys.modules:
        return sys.modules[name]
    try:
        with redirect_stdout(sys.stderr):
            return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"no module {error.name!r} is installed; install it wherever the run computes, or, for a file, write "
                f"{name.rpartition('.')[2]}.py:CLASS"
            ) from error
        raise ValueError(f"module {name} cannot be imported: {_what_failed(error, '')}") from error


def _what_failed(error: BaseException, where: str) -> str:
    """'line 3: NameError: ...'; the line of the file, or the last one that ran."""
    text = " ".join(str(error).split()) or "without a message"
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {type(error).__name__}: {' '.join(str(error.msg).split())}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == where]
    place = f"line {lines[-1]}: " if lines else ""
    advice = ""
    if isinstance(error, PydanticUserError | PydanticUndefinedAnnotation):
        text, advice = re.split(r"\. | For further ", text)[0], f"; {FIELDS}"
    if isinstance(error, ImportError) and where:
        advice = "; a file with parts stands alone: put what it needs into it, or install it as a package"
    return f"{place}{type(error).__name__}: {text}{advice}"
