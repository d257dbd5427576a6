"""`fibec-ray fetch`: copy a job's run directory here, from object storage, the cluster's disk, or a shared folder.

Anyone who can submit jobs writes their names and places, so neither is trusted. A place never names a file of this
machine unless the user passes --shared. A name must be one plain folder name.
"""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import unquote, urlsplit

from fibec_ray.errors import ClusterError, JobFailed, RunDirError
from fibec_ray.files.run_dir import refused
from fibec_ray.files.storage import Storage, is_url
from fibec_ray.jobs.client import HELPER, Cluster, Job
from fibec_ray.jobs.follow import refuse_failure, settled
from fibec_ray.jobs.submit import quoted
from fibec_ray.jobs.unpack import unpack

MOST_MB = 64
"""The largest packed run directory that comes through a job's log."""
LEFT_OUT = ("checkpoints", "data")
"""Folders that do not come that way: they may be large, and only `resume` and personal models need them."""
MARK = "fibec-ray-packed:"
"""The line before and after the packed folder."""
PRINT_MARK = "printf 'fibec-ray-%s\\n' packed:"
"""Prints MARK. The command does not contain MARK itself, because Ray repeats commands in the log."""
OBJECT_STORAGE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "hdfs", "viewfs")
"""Kinds of URL that never name a file of this machine."""


def folder_name(job: Job) -> str:
    """The job's name, for the default destination. Raises ClusterError unless it is one plain folder name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", job.name):
        raise ClusterError(f"{job.id}: its name {job.name!r} is not a folder name; give a DEST")
    return job.name


def fetch(cluster: Cluster, job: Job, target: Path, shared: bool = False) -> list[str]:
    """Copy the run directory to a new or empty folder; returns the parts that were left out.

    shared: this machine sees the job's folder under the same path, so it is copied from there. Raises ClusterError,
    RunDirError or StorageError.
    """
    if job.out is None:
        raise ClusterError(f"{job.id}: was not submitted by fibec-ray, and has no run directory")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunDirError(f"{target}: is not empty; choose another DEST, or remove it")
    with refused(f"{target}: cannot be written", "; choose another DEST"):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(mkdtemp(prefix=".fetch-", dir=target.parent))
        try:
            left_out = _bring(cluster, job, job.out, work / "run", shared)
            (work / "run").rename(target)  # fails if something has come there meanwhile
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return left_out


def _bring(cluster: Cluster, job: Job, out: str, draft: Path, shared: bool) -> list[str]:
    if is_url(out) and not out.startswith("file://"):
        _download(out, draft)
        return []
    path = unquote(urlsplit(out).path) if is_url(out) else out
    if shared:
        _copy(Path(path), draft)
        return []
    unpack(_through_a_log(cluster, job, path), draft)
    return list(LEFT_OUT)


def _download(url: str, draft: Path) -> None:
    if url.partition("://")[0] not in OBJECT_STORAGE:
        raise RunDirError(f"{url}: not a URL of object storage; open it by its URL, as in `fibec-ray report URL`")
    storage = Storage(url)
    if not storage.is_folder():
        raise RunDirError(f"{url}: nothing here yet; has the job's first round ended?")
    storage.download(draft)


def _copy(folder: Path, draft: Path) -> None:
    """Copy a folder. Links stay links, so nothing outside the folder is copied."""
    if not (folder / "config.yaml").is_file():
        raise RunDirError(f"--shared: {folder}: is not a run directory on this machine; leave --shared out")
    with refused(f"--shared: {folder}: cannot be copied"):  # shutil.Error, with all that failed, is an OSError
        shutil.copytree(folder, draft, symlinks=True)


def _through_a_log(cluster: Cluster, job: Job, out: str) -> str:
    """The packed folder in base64. A second job on the cluster packs and prints it, so no shared storage is needed."""
    id_ = f"fetch-{uuid.uuid4().hex}"
    names = " ".join(f"--exclude=./{name}" for name in (*LEFT_OUT, ".lock", ".driver.json"))
    folder = quoted(out)
    # Shell tools that every node has: our own package may have another version there, or none.
    command = (
        f"cd -- {folder} || exit 3; size=$(tar -cz {names} . | wc -c); "
        f'if [ "$size" -gt {MOST_MB * 1_000_000} ]; then echo "fibec-ray: $size bytes are more than a log carries; '
        f'submit with --out URL, or copy the folder"; exit 4; fi; '
        f"{PRINT_MARK}; tar -cz {names} . 2>/dev/null | base64 && {PRINT_MARK}"  # tar warns about a live run's files
    )
    cluster.submit(command, id_, {}, {HELPER: "fetch"})
    packing = settled(cluster, id_)
    # Ray buffers this line, so it may come after the command's first output, or in the middle of it.
    log = cluster.log(id_).replace(f"Running entrypoint for job {id_}: {command}\n", "")
    try:
        refuse_failure(packing, log)
    except JobFailed as error:
        raise RunDirError(f"{out}: cannot be brought from the cluster: {error}") from error
    return log.rpartition(f"{MARK}\n")[0].rpartition(f"{MARK}\n")[2]
