"""Find experiments, sweeps, methods, tasks and backbones by name. The user's own come before packaged ones.

Imports nothing heavy, because shell completion uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fibec_ray.errors import ConfigError, did_you_mean, nearest

GROUPS = {"method": "methods", "task": "tasks", "backbone": "backbones"}
"""Keys whose value may be the name of a file, and the folder of these files."""
OWN = "experiment.yaml"
"""The experiment that commands use if none is named; `fibec-ray init` writes it."""
SUFFIXES = (".yaml", ".yml")


def config_folder() -> Path:
    """Return the packaged `configs` folder: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def method_files() -> list[Path]:
    """The YAML files of all packaged methods."""
    return sorted((config_folder() / "methods").glob("*.yaml"))


def packaged(group: str) -> dict[str, Path]:
    """Return the packaged files by name. group: methods, tasks, backbones, experiments or sweeps.

    The name of a file in a subfolder includes the subfolder: paper/accuracy.
    """
    folder = config_folder() / group
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    if group == "experiments":
        files |= {path.stem: path for path in config_folder().glob("*.yaml")}
    return dict(sorted(files.items()))


def own(group: str, folder: Path) -> dict[str, Path]:
    """Return the user's own methods, tasks or backbones by name, for an experiment in a folder.

    They are in `methods/` (and so on) beside the experiment, beside its folder, or in the working directory.
    """
    places = [Path(), folder.resolve().parent, folder]
    return {path.stem: path for place in places for path in _yaml_files(place / group)}


def find(key: str, name: str, experiment: Path) -> Path:
    """Find the file of `method: NAME`, `task: NAME` or `backbone: NAME`. Raises ConfigError.

    name: a name, or the path of a YAML file. experiment: the file whose settings name it.
    """
    if name.endswith(SUFFIXES):
        return Path(name)
    group = GROUPS[key]
    known = packaged(group) | own(group, experiment.parent)
    if name not in known:
        raise ConfigError(f"{key}: no {key} is called {name!r}; {did_you_mean(name, known)}")
    return known[name]


def find_config(text: str | None, groups: Sequence[str] = ("experiments",)) -> Path:
    """Find the file of an experiment or a sweep. Raises ConfigError for an unknown name.

    text: a path, a packaged name, or a folder with an experiment.yaml; None: the working directory.
    """
    if text is None:
        return _in_folder(Path(), "no CONFIG given, and this folder has no experiment.yaml")
    path = Path(text)
    if path.is_dir():
        return _in_folder(path, f"{text}: this folder has no experiment.yaml")
    if path.exists() or path.is_symlink() or text.endswith(SUFFIXES) or not text.strip():
        return path
    beside = {file.stem: file for file in _yaml_files(Path())}
    known = {name: file for group in groups for name, file in packaged(group).items()} | beside
    if "/" in text and text.partition("/")[0] not in {name.partition("/")[0] for name in known if "/" in name}:
        return path
    if text not in known:
        raise ConfigError(f"no config is called {text!r}; {did_you_mean(text, known)}")
    return known[text]


def near_file(path: Path) -> str:
    """Suggest another name for a missing file: '; did you mean X?', or ''."""
    beside = [str(file) for file in _yaml_files(path.parent)]
    if near := nearest(str(path), beside):
        return f"; did you mean '{near}'?"
    for group in ("experiments", "sweeps"):
        if path.stem in packaged(group):
            return f"; for the packaged config, write {path.stem}"
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
