"""`fibec-ray fetch`: brings a job's run directory here, from a URL, a shared folder, or the cluster's own disk."""

from __future__ import annotations

import base64
import io
import shutil
import tarfile
import uuid
from pathlib import Path

from fibec_ray.errors import ClusterError, JobFailed, RunDirError
from fibec_ray.jobs.client import HELPER, Cluster, Job
from fibec_ray.jobs.follow import refuse_failure, settled
from fibec_ray.jobs.submit import RUNS, quoted
from fibec_ray.storage import Storage, is_url

MOST_MB = 64
"""Of a run directory, packed, that comes through a job's log."""
LEFT_OUT = ("checkpoints", "data")
"""Of what comes that way: they are needed to go on with a run, not to look at it, and may be large."""
MARK = "fibec-ray-packed:"


def fetch(cluster: Cluster, job: Job, target: Path) -> list[str]:
    """Copies the run directory into a folder that is not there yet, or empty. Returns the parts that were left out."""
    if job.out is None:
        raise ClusterError(f"{job.id}: was not submitted by fibec-ray, and has no run directory")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunDirError(f"{target}: is not empty; choose another DEST, or remove it")
    draft = target.with_name(f".{target.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        left_out = _bring(cluster, job, job.out, draft)
        draft.rename(target)  # fails if something has come there meanwhile
    except OSError as error:
        raise RunDirError(f"{target}: cannot be written ({error.strerror}); choose another DEST") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return left_out


def _bring(cluster: Cluster, job: Job, out: str, draft: Path) -> list[str]:
    if is_url(out):
        storage = Storage(out)
        if not storage.is_folder():
            raise RunDirError(f"{out}: nothing here yet; has the job's first round ended?")
        storage.download(draft)
        return []
    if not out.startswith(RUNS) and Path(out).is_dir():
        shutil.copytree(out, draft)
        return []
    _unpack(_through_a_log(cluster, job, out), draft)
    return list(LEFT_OUT)


def _through_a_log(cluster: Cluster, job: Job, out: str) -> str:
    """A second job on the cluster packs the folder and prints it: that needs no storage that we share with it."""
    id_ = f"{job.name}.fetch-{uuid.uuid4().hex[:8]}"
    names = " ".join(f"--exclude=./{name}" for name in (*LEFT_OUT, ".lock", ".driver.json"))
    folder = quoted(out)
    # Ready-made tools of any node: our own package may be at another version there, or not installed at all.
    command = (
        f"cd {folder} || exit 3; size=$(tar -cz {names} . | wc -c); "
        f'if [ "$size" -gt {MOST_MB * 1_000_000} ]; then echo "fibec-ray: $size bytes are more than a log carries; '
        f'submit with --out URL, or copy the folder"; exit 4; fi; '
        f"echo {MARK}; tar -cz {names} . | base64"
    )
    cluster.submit(command, id_, {}, {HELPER: "fetch"})
    packing = settled(cluster, id_)
    log = cluster.log(id_)
    try:
        refuse_failure(packing, log)
    except JobFailed as error:
        raise RunDirError(f"{out}: cannot be brought from the cluster: {error}") from error
    return log.rpartition(f"{MARK}\n")[2]


def _unpack(text: str, draft: Path) -> None:
    try:
        packed = base64.b64decode("".join(text.split()), validate=True)
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            archive.extractall(draft, filter="data")  # refuses links and paths that lead out of the folder
    except (ValueError, tarfile.TarError, OSError, EOFError) as error:
        raise RunDirError(f"{draft}: what the cluster sent is no run directory ({error})") from error
