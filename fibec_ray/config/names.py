"""Finds configs by name: experiments, sweeps, methods, tasks and backbones, the user's own before the packaged ones.

Imports nothing heavy: shell completion lists names too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fibec_ray.errors import ConfigError, did_you_mean

GROUPS = {"method": "methods", "task": "tasks", "backbone": "backbones"}
"""Keys of an experiment whose value may be the name of a file, and the folder of such files."""
OWN = "experiment.yaml"
"""The experiment that commands take when none is named; `fibec-ray init` writes it."""
SUFFIXES = (".yaml", ".yml")


def config_folder() -> Path:
    """The packaged `configs` folder: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def method_files() -> list[Path]:
    return sorted((config_folder() / "methods").glob("*.yaml"))


def packaged(group: str) -> dict[str, Path]:
    """Name -> file. group: methods, tasks, backbones, experiments or sweeps; the quickstart is an experiment."""
    files = list((config_folder() / group).glob("*.yaml"))
    if group == "experiments":
        files.append(config_folder() / "quickstart.yaml")
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def own(group: str, folder: Path) -> dict[str, Path]:
    """The user's own methods, tasks or backbones for an experiment in a folder, by name.

    They are in `./methods/` (and so on) beside the experiment, one folder further up, or in the working directory.
    """
    places = [Path(), folder.resolve().parent, folder]
    return {path.stem: path for place in places for path in _yaml_files(place / group)}


def find(key: str, name: str, experiment: Path) -> Path:
    """The file behind `method: NAME`, `task: NAME` or `backbone: NAME`. Raises ConfigError.

    name: a name or the path of a YAML file. experiment: the file that names it, or that overrides were given for.
    """
    if name.endswith(SUFFIXES):
        return Path(name)
    group = GROUPS[key]
    known = packaged(group) | own(group, experiment.parent)
    if name not in known:
        raise ConfigError(f"{key}: no {key} is called {name!r}; {did_you_mean(name, known)}")
    return known[name]


def find_config(text: str | None, groups: Sequence[str] = ("experiments",)) -> Path:
    """The file of an experiment or a sweep. Raises ConfigError for a name that is not known.

    text: a path, a packaged name, or a folder with an experiment.yaml; None: the working directory's.
    """
    if text is None:
        return _in_folder(Path(), "no CONFIG given, and this folder has no experiment.yaml")
    path = Path(text)
    if path.is_dir():
        return _in_folder(path, f"{text}: this folder has no experiment.yaml")
    if path.exists() or path.is_symlink() or text.endswith(SUFFIXES) or "/" in text or not text.strip():
        return path
    beside = {file.stem: file for file in _yaml_files(Path())}
    known = {name: file for group in groups for name, file in packaged(group).items()} | beside
    if text not in known:
        raise ConfigError(f"no config is called {text!r}; {did_you_mean(text, known)}")
    return known[text]


def near_file(path: Path) -> str:
    """'; did you mean X?' for a file that is not there, or ''. Looks in its folder, and at the packaged configs."""
    beside = [str(file) for file in _yaml_files(path.parent)]
    near = did_you_mean(str(path), beside)
    if near.startswith("did you mean"):
        return f"; {near}"
    for group in ("experiments", "sweeps"):
        if path.stem in packaged(group):
            return f"; the packaged one is called by its name: {path.stem}"
    return ""


def _in_folder(folder: Path, complaint: str) -> Path:
    if (folder / OWN).is_file():
        return folder / OWN
    raise ConfigError(f"{complaint}; name a config (`fibec-ray configs` lists them), or make one with `fibec-ray init`")


def _yaml_files(folder: Path) -> Iterable[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    except OSError:
        return []
