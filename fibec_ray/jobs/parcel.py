"""Pack what travels with a job: this package's code, the experiment with all defaults, small data and backbones.

Libraries do not travel: the cluster's image has them, in the versions of constraints.txt.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import reduce
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fibec_ray
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.names import config_folder
from fibec_ray.data.splits import with_shards
from fibec_ray.errors import ConfigError, DataError, ModelError
from fibec_ray.files.run_dir import write_yaml
from fibec_ray.files.storage import is_url
from fibec_ray.parts.own import keep_files

EXPERIMENT = "experiment.yaml"
INPUTS = "inputs"
MOST_DATA_BYTES = 100_000_000
"""Of a data set or a backbone that travels with a job. Ray's own limit for all of a package is five times that."""
MOST_FILES = 10_000
FILES = ("data.path", "data.train", "data.test")
"""Settings that may name files of this machine, beside those of the backbone (`local_settings`)."""


@contextmanager
def packed(experiment: Experiment, installed: bool) -> Iterator[dict[str, Any]]:
    """The job's runtime environment. Its folders exist until the block ends.

    installed: the cluster's image has this package, so the code stays here. Raises DataError or ModelError for files
    that cannot travel.
    """
    with TemporaryDirectory(prefix="fibec-job-") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        write_yaml(work / EXPERIMENT, settings_for(experiment, work))
        keep_files(experiment.sources, work)
        modules = [] if installed else [str(copy_code(Path(folder)))]
        yield {"working_dir": str(work), **({"py_modules": modules} if modules else {})}


def settings_for(experiment: Experiment, work: Path) -> dict[str, Any]:
    """The experiment as the cluster runs it: on the job's own cluster, with data and backbone that it can read.

    Files that are named relative to this folder, or to `~`, are copied into `work`. Absolute paths and URLs stay: the
    cluster must see them. Raises DataError or ModelError for what cannot travel.
    """
    settings = experiment.model_dump(mode="json")
    if experiment.fleet.kind == "ray" and experiment.fleet.address is None:
        settings["fleet"]["address"] = "auto"  # else the job would start a Ray of its own, on the head alone
    for key in (*FILES, *(f"backbone.{name}" for name in experiment.backbone.local_settings)):
        section, _, name = key.partition(".")
        value = settings[section].get(name)
        if value is None or is_url(value) or Path(value).is_absolute():
            continue
        if key in ("data.train", "data.test") and _is_folder(experiment.data.path):
            continue  # within data.path
        local = Path(value).expanduser()
        if section == "backbone" and not _is_local(local, value):
            continue
        folder = work / INPUTS / ("" if key == "data.path" else name)
        settings[section][name] = take_along(local, folder, work, key)
    for key, path in experiment.system.files.items():
        *outer, name = key.split(".")
        section = reduce(dict.__getitem__, outer, settings["system"])
        if not Path(path).is_absolute():
            section[name] = take_along(Path(path).expanduser(), work / INPUTS / key, work, f"system.{key}")
    _refuse_files_of_parts(settings["method"], "method")
    return settings


def _is_folder(data_path: str | None) -> bool:
    """True if the training and test files are named relative to data.path; a URL counts as a folder."""
    return data_path is not None and (is_url(data_path) or not Path(data_path).expanduser().is_file())


def _is_local(path: Path, value: str) -> bool:
    """True for a backbone that is a folder here; False for names of models, such as minilm or a hub id.

    Raises ModelError for a relative path that leads nowhere: the cluster would take it for a hub id.
    """
    if path.is_dir():
        return True
    if value.startswith((".", "~")) or value.endswith("/"):
        raise ModelError(
            f"backbone: {value}: no such folder here; give a folder that exists, an absolute path that every node of "
            "the cluster sees, or a hub id"
        )
    return False


def _refuse_files_of_parts(value: Any, key: str) -> None:
    """Raises ConfigError for a method's setting that names a file of this machine, which the cluster would not have."""
    if isinstance(value, dict):
        for name, below in value.items():
            if name != "kind":
                _refuse_files_of_parts(below, f"{key}.{name}")
    elif isinstance(value, str) and not value.startswith("/") and not is_url(value) and _is_file(value):
        raise ConfigError(
            f"{key}: {value} is a file of this machine, which the job would not find; put it on storage that every "
            "node of the cluster sees and give its absolute path"
        )


def _is_file(text: str) -> bool:
    """True for a path with a folder in it that leads to a file here."""
    try:
        return "/" in text and Path(text).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def take_along(source: Path, inputs: Path, work: Path | None = None, key: str = "data.path") -> str:
    """Copy a file or folder into `inputs`; returns its path as seen from `work`, where the job starts.

    work: None: the folder that holds `inputs`. key: of the experiment, for messages. Raises DataError, or ModelError
    for a backbone.
    """
    failure = ModelError if key.startswith("backbone") else DataError
    try:
        root = source.resolve(strict=True)
        if root.is_file():  # beside the other shards of its split
            files = {Path(shard.name): shard for shard in with_shards(source)}
            top = inputs
        else:
            files = dict(islice(_files_in(root, Path(), (root,)), MOST_FILES + 1))
            top = inputs / (root.name or "data")
        refuse_too_much(source, files.values())
        for name, file in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, top / name)
        target = top / source.name if root.is_file() else top
    except _CannotTravel as error:
        raise failure(f"{key}: {error}") from error
    except FileNotFoundError as error:
        raise failure(
            f"{key}: {source}: no such file or folder here, and it is not an absolute path on the cluster"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # unreadable; not a path; links in a circle
        raise failure(f"{key}: {source}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return str(target.relative_to(work or inputs.parent))


class _CannotTravel(Exception):
    """A file or folder that does not travel with a job, and what to do."""


def _files_in(root: Path, at: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, Path]]:
    """(path below root, file to read) for every file but hidden ones. A link gives the file that it points to.

    above: the folders that hold this one, to find a link back to one of them. Raises _CannotTravel for links out of the
    folder, and for pipes, sockets and devices.
    """
    for entry in sorted((root / at).iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not entry.exists():
            raise _CannotTravel(f"{entry}: is a link that leads nowhere; remove it")
        source = entry.resolve()
        if not source.is_relative_to(root):
            raise _CannotTravel(f"{entry}: is a link out of the folder, to {source}; put the file itself there")
        if source in above:
            raise _CannotTravel(f"{entry}: is a link to a folder that holds it; remove it")
        if source.is_dir():
            yield from _files_in(root, at / entry.name, (*above, source))
        elif source.is_file():
            yield at / entry.name, source
        else:
            raise _CannotTravel(f"{entry}: is neither a file nor a folder; remove it")


def refuse_too_much(source: Path, files: Collection[Path]) -> None:
    """Raises _CannotTravel for a folder without files, with too many, or with too many bytes."""
    if not files:
        raise _CannotTravel(f"{source}: holds no files")
    if len(files) > MOST_FILES:
        raise _CannotTravel(f"{source}: holds more than {MOST_FILES:,} files; name a folder with fewer")
    num_bytes = sum(path.stat().st_size for path in files)
    if num_bytes > MOST_DATA_BYTES:
        raise _CannotTravel(
            f"{source} has {num_bytes / 1e6:.0f} MB, and {MOST_DATA_BYTES / 1e6:.0f} may travel with a job; put it on "
            "storage that every node of the cluster sees and give its absolute path (for data also a URL, s3:// or "
            "gs://; for a backbone also a hub id)"
        )


def copy_code(folder: Path) -> Path:
    """Copy this package into `folder`, with the packaged configs inside it as in a wheel."""
    code = folder / "fibec_ray"
    _copy(Path(fibec_ray.__file__).parent, code)
    if not (code / "configs").is_dir():
        _copy(config_folder(), code / "configs")
    return code


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
