"""Damages each file and folder of a stopped run in each way, and resumes it: the right bits, or one line.

Files are found by walking the run directory, so that new kinds of file are covered without a word here. Called by
harness.py.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runs.crashes import Found, chosen, counted, finished, result
from runs.forks import KILLED, command
from runs.operations import Operations


@dataclass(frozen=True)
class Damage:
    how: str
    name: str
    """of the file or folder, in the run directory"""

    def __str__(self) -> str:
        return f"{self.name}: {self.how}"


@dataclass(frozen=True)
class Home:
    """A damaged file and the kind of damage."""

    stopped: Path
    earlier: Path
    """the same run, two rounds before"""
    foreign: Path
    """another seed's run, stopped at the same place"""
    work: Path


def walk(home: Path, sample: str) -> Found:
    """home: has run.yaml. sample: 'all', or 'NUMBER:SEED'."""
    made = Home(home / "stopped", home / "earlier", home / "foreign", home / "work")
    calm = result(prepare(home, home / "run.yaml", made))
    return Found(chosen(all_damages(made), sample), lambda case: damaged(case, made, calm))


def prepare(home: Path, config: Path, made: Home) -> Path:
    """Make the stopped runs and the undisturbed one."""
    calm = home / "calm"
    names = counted(calm, ["run", str(config), "--out", str(calm)])
    at = names.index("replace rounds/part-000003.parquet") + 3
    for folder, seed in ((made.stopped, 0), (made.foreign, 1)):
        run = ["run", str(config), f"seed={seed}", "--out", str(folder)]
        assert command(run, Operations(folder, at).install).code == KILLED
    copied = home / "copied"
    earlier = names.index("replace rounds/part-000001.parquet") + 3
    run = ["run", str(config), "--out", str(copied)]
    assert command(run, Operations(copied, earlier).install).code == KILLED
    copied.rename(made.earlier)
    return calm


def all_damages(made: Home) -> list[Damage]:
    found = []
    for path in sorted(made.stopped.rglob("*")):
        name = path.relative_to(made.stopped).as_posix()
        for how in FOLDERS if path.is_dir() else FILES:
            if (FOLDERS if path.is_dir() else FILES)[how](made, made.stopped / name, False):
                found.append(Damage(how, name))
    return found


def damaged(case: Damage, made: Home, calm: tuple[str | None, str, bytes]) -> str:
    """'' if resume, verify and report each work, or refuse in one line."""
    folder = made.work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made.stopped, folder)
    path = folder / case.name
    (FOLDERS if path.is_dir() else FILES)[case.how](made, path, True)
    strays = [each for each in folder.rglob("*") if STRAY.search(each.name)]
    page = ["report", str(folder), "--out", str(made.work / "page.html")]
    told = [command(["verify", str(folder)]), command(page), command(["resume", str(folder)])]
    faults = [ended.fault for ended in told if ended.fault and not differs(ended.said)]
    if faults:
        return "; ".join(faults)
    if told[-1].code == 0 and finished(folder) and result(folder) != calm:
        return "resume: other bits"
    gone = [each.name for each in strays if not each.exists()]
    return f"resume: removed {gone}" if gone else ""


def differs(said: str) -> bool:
    """What `verify` ends with where the log is not what the run comes to: exit code 1 and a line."""
    return "not what was logged" in said and "Traceback" not in said


Act = Callable[[Home, Path, bool], bool]
"""(home, file, do it) -> whether it can be done to this file"""


def _write(change: Callable[[bytes], bytes]) -> Act:
    def act(made: Home, path: Path, do: bool) -> bool:
        before = path.read_bytes()
        after = change(before)
        if do:
            path.write_bytes(after)
        return after != before

    return act


def _flip(where: float) -> Callable[[bytes], bytes]:
    def flipped(content: bytes) -> bytes:
        at = min(len(content) - 1, int(where * len(content)))
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] if content else content

    return flipped


def _from(other: Callable[[Home, Path], Path | None]) -> Act:
    def act(made: Home, path: Path, do: bool) -> bool:
        source = other(made, path)
        if source is None or not source.is_file() or source.read_bytes() == path.read_bytes():
            return False
        if do:
            path.write_bytes(source.read_bytes())
        return True

    return act


def _name_in_run(made: Home, path: Path) -> Path:
    root = made.stopped if path.is_relative_to(made.stopped) else made.work / "run"
    return path.relative_to(root)


def _older_version(made: Home, path: Path) -> Path | None:
    """The file that is this one of an earlier round: '000003/manifest.json', '3.safetensors', 'part-000003.parquet'."""
    name = _name_in_run(made, path).as_posix()
    numbers = list(re.finditer(r"(?<![0-9])[0-9]+(?![0-9])", name))
    for match in reversed(numbers):
        for lower in range(int(match[0]) - 1, -1, -1):
            text = f"{lower:0{len(match[0])}d}" if match[0].startswith("0") else str(lower)
            source = made.stopped / (name[: match.start()] + text + name[match.end() :])
            if source.is_file():
                return source
    return None


def _sibling(path: Path) -> Path | None:
    """Another file of the same kind: in the same folder, or of the same name in the folder beside."""
    here = sorted(each for each in path.parent.iterdir() if each.suffix == path.suffix and each.is_file())
    beside = sorted(each for each in path.parent.parent.glob(f"*/{path.name}") if each.is_file())
    for group in (here, beside):
        if len(group) > 1:
            return group[(group.index(path) + 1) % len(group)]
    return None


def _swap(made: Home, path: Path, do: bool) -> bool:
    other = _sibling(path)
    if other is None or other.read_bytes() == path.read_bytes():
        return False
    if do:
        mine, others = path.read_bytes(), other.read_bytes()
        path.write_bytes(others)
        other.write_bytes(mine)
    return True


def _missing(made: Home, path: Path, do: bool) -> bool:
    if do:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return True


def _as_folder(made: Home, path: Path, do: bool) -> bool:
    if do:
        path.unlink()
        path.mkdir()
    return True


def _stray(name: Callable[[Path], str]) -> Act:
    def act(made: Home, path: Path, do: bool) -> bool:
        beside = path.with_name(name(path))
        if do:
            shutil.copytree(path, beside) if path.is_dir() else shutil.copy(path, beside)
        return True

    return act


STRAY = re.compile(r" \(copy\)|^\.DS_Store$|\.bak$|^abc-")
FILES: dict[str, Act] = {
    "cut": _write(lambda content: content[: len(content) // 2]),
    "one byte cut": _write(lambda content: content[:-1]),
    "a bit flipped at its start": _write(_flip(0.0)),
    "a bit flipped in the middle": _write(_flip(0.5)),
    "a bit flipped at its end": _write(_flip(1.0)),
    "emptied": _write(lambda content: b""),
    "zeros": _write(lambda content: bytes(len(content))),
    "swapped with a sibling": _swap,
    "of an earlier round": _from(_older_version),
    "as it was earlier": _from(lambda made, path: made.earlier / _name_in_run(made, path)),
    "of another run": _from(lambda made, path: made.foreign / _name_in_run(made, path)),
    "missing": _missing,
    "a folder": _as_folder,
    "a copy beside it": _stray(lambda path: f"{path.stem} (copy){path.suffix}"),
    "a .DS_Store beside it": _stray(lambda path: ".DS_Store"),
    "a backup beside it": _stray(lambda path: f"{path.name}.bak"),
    "a like name beside it": _stray(lambda path: f"abc-{path.name}"),
}
FOLDERS: dict[str, Act] = {
    "missing": _missing,
    "a copy beside it": _stray(lambda path: f"{path.name} (copy)"),
    "a like name beside it": _stray(lambda path: f"abc-{path.name}"),
}
