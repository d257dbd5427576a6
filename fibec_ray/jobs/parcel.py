"""What travels with a job: our own code, the experiment with all defaults filled in, small data.

Libraries do not travel: they are in the cluster's image, in the versions of constraints.txt.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fibec_ray
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import config_folder
from fibec_ray.errors import DataError
from fibec_ray.files.run_dir import write_yaml
from fibec_ray.files.storage import is_url
from fibec_ray.parts.own import keep_files

EXPERIMENT = "experiment.yaml"
INPUTS = "inputs"
MOST_DATA_BYTES = 100_000_000
"""Of data that travels with a job; Ray's own limit for a package is five times that."""
MOST_FILES = 10_000


@contextmanager
def packed(experiment: Experiment, installed: bool) -> Iterator[dict[str, Any]]:
    """The job's runtime environment; its folders are there until the block ends.

    installed: the cluster's image has this package, and its code need not travel.
    """
    with TemporaryDirectory(prefix="fibec-job-") as folder:
        work = Path(folder) / "work"
        work.mkdir()
        write_yaml(work / EXPERIMENT, settings_for(experiment, work))
        keep_files(experiment.method.sources, work)
        modules = [] if installed else [str(copy_code(Path(folder)))]
        yield {"working_dir": str(work), **({"py_modules": modules} if modules else {})}


def settings_for(experiment: Experiment, work: Path) -> dict[str, Any]:
    """The experiment as the cluster will run it: on the cluster that the job is on, with data that it can read."""
    settings = experiment.model_dump(mode="json")
    if experiment.fleet.kind == "ray" and experiment.fleet.address is None:
        settings["fleet"]["address"] = "auto"  # else the job would start a Ray of its own, on the head alone
    path = experiment.data.path
    if path is not None and not is_url(path) and not Path(path).is_absolute():
        settings["data"]["path"] = take_along(Path(path), work / INPUTS)
    return settings


def take_along(data: Path, inputs: Path) -> str:
    """Copies a data set to where the job starts; returns its path as seen from there. Raises DataError."""
    try:
        root = data.resolve(strict=True)
        files = {Path(): root} if root.is_file() else dict(islice(_files_in(root, Path(), (root,)), MOST_FILES + 1))
        refuse_too_much(data, files.values())
        target = inputs / (root.name or "data")
        for name, source in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)
    except FileNotFoundError as error:
        raise DataError(
            f"data.path: {data}: no such file or folder here, and it is not an absolute path on the cluster"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # unreadable; not a path; links in a circle
        raise DataError(f"data.path: {data}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    return str(target.relative_to(inputs.parent))


def _files_in(root: Path, at: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, Path]]:
    """(path below root, file to read) for every file but hidden ones. Links count as what they lead to.

    above: the folders that hold this one, so that a link back to one of them is found. Raises DataError for links out
    of the folder and for what is neither file nor folder.
    """
    for entry in sorted((root / at).iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not entry.exists():
            raise DataError(f"data.path: {entry}: is a link that leads nowhere; remove it")
        source = entry.resolve()
        if not source.is_relative_to(root):
            raise DataError(f"data.path: {entry}: is a link out of the folder, to {source}; put the file itself there")
        if source in above:
            raise DataError(f"data.path: {entry}: is a link to a folder that holds it; remove it")
        if source.is_dir():
            yield from _files_in(root, at / entry.name, (*above, source))
        elif source.is_file():
            yield at / entry.name, source
        else:
            raise DataError(f"data.path: {entry}: is neither a file nor a folder; remove it")


def refuse_too_much(data: Path, files: Collection[Path]) -> None:
    if not files:
        raise DataError(f"data.path: {data}: holds no files")
    if len(files) > MOST_FILES:
        raise DataError(
            f"data.path: {data}: holds more than {MOST_FILES:,} files; name the folder of the data set alone"
        )
    num_bytes = sum(path.stat().st_size for path in files)
    if num_bytes > MOST_DATA_BYTES:
        raise DataError(
            f"data.path: {data} has {num_bytes / 1e6:.0f} MB, and {MOST_DATA_BYTES / 1e6:.0f} may travel with a job; "
            "put it on storage that the cluster reads and give its URL (s3://, gs://) or absolute path"
        )


def copy_code(folder: Path) -> Path:
    """Copies this package into `folder`, with the packaged configs inside it as in a wheel."""
    code = folder / "fibec_ray"
    _copy(Path(fibec_ray.__file__).parent, code)
    if not (code / "configs").is_dir():
        _copy(config_folder(), code / "configs")
    return code


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
