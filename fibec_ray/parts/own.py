"""Loads users' own parts: classes in a file, in an installed module, or in a package with entry points.

A kind with a colon names such a class: `my_rules.py:ClippedMean` is in a file, `my_package.rules:ClippedMean` in a
module. A package can offer short names through entry points in the group `fibec_ray.parts`. Naming a class runs its
file or module.
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
"""The entry point group for parts."""
MOST_BYTES = 1_000_000
"""Largest size of a file with parts. The file travels to every actor."""
FORMS = "FILE.py:CLASS or MODULE:CLASS, such as my_rules.py:ClippedMean"
"""How a class is named, for messages."""
FIELDS = (
    "write a hyper-parameter as NAME: TYPE = DEFAULT, with a type that YAML has and the file imports; write anything "
    "else as NAME: ClassVar = VALUE"
)
NOT_AT_THE_TOP = "other processes cannot import this class; move it to the top level of a file or module"
_known: dict[str, type[Any]] = {}
"""The newest class of each kind in this process."""


@dataclass(frozen=True)
class Source:
    """The file or module that a class comes from.

    A run carries the text of a file along. A module must be installed on every node.
    """

    name: str
    """such as my_rules.py or my_package.rules"""
    digest: str
    """hash of the text"""
    text: str | None
    """the file's content; None for a module"""
    path: str = field(default="", compare=False)
    """where the file was read, on that machine"""


def find(kind: str, contract: type[Any]) -> type[Any] | None:
    """Find the user's class that `kind` names; None for a plain word that no package offers.

    contract: the base class of the axis. Runs the file or module. Raises ValueError with the reason and the remedy.
    """
    if kind in _known:
        return checked(_known[kind], kind, contract)
    place, colon, name = kind.rpartition(":")
    if not colon and not kind.endswith(".py"):
        return _offered(kind, contract)
    if not place or not name.isidentifier() or (":" in place and not place.endswith(".py")):
        raise ValueError(f"{kind!r} is not the name of a class; expected {FORMS}")
    module = load(place)
    if name not in vars(module):
        raise ValueError(f"{place} has no class {name!r}; {did_you_mean(name, classes_in(module, contract))}")
    found = checked(vars(module)[name], kind, contract)
    if is_own(found) and "." in found.__qualname__:
        raise ValueError(
            f"{kind} is {found.__qualname__}, which other processes cannot import; move it to the top level of the file"
        )
    return found


def checked(found: Any, kind: str, contract: type[Any]) -> type[Any]:
    """Return the class if it can be used on this axis. Raises ValueError."""
    base = f"{contract.__module__}.{contract.__name__}"
    if not isinstance(found, type) or not issubclass(found, contract):
        if other := _axis_of(found, contract):
            name = other.__name__.lower()
            setting = f"method.{name}" if other.__module__.startswith("fibec_ray.parts.") else name
            raise ValueError(f"{kind} is a part for {name}, not for {contract.__name__.lower()}; set {setting}")
        raise ValueError(f"{kind} is not a part for {contract.__name__.lower()}; make it a subclass of {base}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(vars(found)["__abstractmethods__"]))
        raise ValueError(f"{kind} lacks methods that {base} requires: {missing}; add them")
    try:
        found.model_rebuild()  # type: ignore[attr-defined]  # resolves forward references
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise ValueError(f"{kind}: {_what_failed(error, '')}") from error
    return found


def classes_in(module: ModuleType, contract: type[Any]) -> dict[str, type[Any]]:
    """The parts of one axis that a module defines itself. contract: the base class of the axis, or Part for all
    axes.
    """
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, contract) and value.__module__ == module.__name__
    }


def is_own(cls: type[Any]) -> bool:
    """True for a user's class, False for a class of this package."""
    return not cls.__module__.startswith("fibec_ray.")


def name_kind(cls: type[Any]) -> str:
    """Return the kind of a user's new class, FILE:CLASS or MODULE:CLASS, and remember the class."""
    kind = f"{source_of(cls).name}:{cls.__qualname__}"
    _known[kind] = cls
    return kind


def load(place: str) -> ModuleType:
    """Run a file with parts, or import a module. Raises ValueError."""
    return load_file(Path(place)) if place.endswith(".py") else _imported(place)


def load_file(path: Path) -> ModuleType:
    """Run a file with parts, once for each content. Raises ValueError."""
    text = _read(path)
    return _run(Source(path.name, digest(text), text, os.path.abspath(path)), str(path))


def unpickled(kind: str, source: Source) -> Any:
    """Rebuild a part that another process sent, without its fields. Raises FleetError if its class is missing here."""
    cls = _known.get(kind)
    if cls is not None and source_of(cls) == source:
        return object.__new__(cls)
    found = vars(load_source(source)).get(kind.rpartition(":")[2])
    if found is None:
        raise FleetError(f"{kind}: {NOT_AT_THE_TOP}")
    return object.__new__(found)


def load_source(source: Source) -> ModuleType:
    """Load the source that another process sent. Raises FleetError if that is impossible here."""
    try:
        module = _run(source, source.name) if source.text is not None else _imported(source.name)
        if _source(module) != source:
            raise ValueError(
                "differs from the version that the run started with; install the same version on every node"
            )
        return module
    except ValueError as error:
        raise FleetError(f"{source.name}: node {platform.node()}: {error}") from error


def source_of(cls: type[Any]) -> Source:
    """The source of the module that defines a class."""
    module = sys.modules.get(cls.__module__)
    return _source(module) if module is not None else Source(cls.__module__, "", None)


def keep_files(sources: Mapping[str, Source], folder: Path) -> None:
    """Write the files into a folder `parts` beside the YAML that names them. Raises RunDirError."""
    for name, source in sources.items():
        if source.text is not None:
            path = folder / "parts" / name
            with failing_plainly(folder):
                path.parent.mkdir(exist_ok=True)
            write_text(path, source.text)


def offered_names() -> list[str]:
    """Short names of parts that installed packages offer."""
    return [point.name for point in _entry_points()]


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _offered(name: str, contract: type[Any]) -> type[Any] | None:
    """The class that a package offers under a short name; None if there is none. One name may be used on several
    axes.
    """
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
        raise ValueError(f"{name!r} from an installed package: {reason}") from reason
    return found[0] if found else None


def _axis_of(found: Any, contract: type[Any]) -> type[Any] | None:
    """The base class of another axis that a part belongs to; None for anything else."""
    root = contract.__bases__[0]
    bases = found.__mro__ if isinstance(found, type) else ()
    return next((cls for cls in bases if root in cls.__bases__ and not is_own(cls)), None)


def _read(path: Path) -> str:
    """Read a file with parts. Raises ValueError."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: not a regular file; give the path of a Python file")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        names = [each.name for each in path.parent.glob("*.py")]
        seen_from = "paths are relative to the YAML that names them, or, on the command line, to the current folder"
        raise ValueError(f"{path}: no such file; {did_you_mean(path.name, names) if names else seen_from}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give the path of a Python file") from error
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"{path}: larger than {MOST_BYTES / 1e6:.0f} MB; the file is sent to every actor, so keep only code in it"
        )
    if not re.fullmatch(r"\w[\w .+-]*\.py", path.name):
        raise ValueError(f"{path}: a file name may have letters, digits, '_' and '-' before .py; rename the file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def digest(text: str) -> str:
    """Hash of a text, in hex."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _source(module: ModuleType) -> Source:
    """The source of an imported module, remembered on the module."""
    known = getattr(module, "__own_source__", None)
    if isinstance(known, Source):
        return known
    file = getattr(module, "__file__", None) or ""
    try:
        found = digest(Path(file).read_bytes().decode(errors="replace")) if file else ""
    except OSError:
        found = ""
    source = Source(module.__name__, found, None, file)
    vars(module)["__own_source__"] = source  # the digest of the running code, even if the file is edited later
    return source


def _run(source: Source, where: str) -> ModuleType:
    """Run a file's text as a module. The module's name depends on the content: another text gives another module."""
    name = f"_fibec_ray_own_{digest(source.name + source.digest)}"
    module = sys.modules.get(name)
    if module is None:
        module = ModuleType(name, f"{where}, run by fibec_ray")
        module.__file__ = where
        vars(module)["__own_source__"] = source  # classes read it while they are created
        sys.modules[name] = module
        text = source.text or ""
        linecache.cache[where] = (len(text), None, text.splitlines(keepends=True), where)
        try:
            with redirect_stdout(sys.stderr):  # a program may parse what a command prints
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
    """Import a module by name. Raises ValueError."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{name!r} is not a module name; expected {FORMS}")
    if name == "__main__":
        raise ValueError(
            "other processes cannot import __main__, the started program or notebook; put the class into a file and "
            "name it FILE.py:CLASS"
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
                f"no module {error.name!r} is installed; install it on every node, or, for a file, write "
                f"{name.rpartition('.')[2]}.py:CLASS"
            ) from error
        raise ValueError(f"module {name} cannot be imported: {_what_failed(error, '')}") from error


def _what_failed(error: BaseException, where: str) -> str:
    """Describe an error, such as 'line 3: NameError: ...', with the last line of the file that ran."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {type(error).__name__}: {' '.join(str(error.msg).split())}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == where]
    place = f"line {lines[-1]}: " if lines else ""
    advice = ""
    if isinstance(error, PydanticUserError | PydanticUndefinedAnnotation):
        text, advice = re.split(r"\. | For further ", text)[0], f"; {FIELDS}"
    if isinstance(error, ImportError) and where:
        advice = "; a file with parts cannot import its neighbours: put all code into it, or install it as a package"
    return f"{place}{type(error).__name__}: {text}{advice}"
