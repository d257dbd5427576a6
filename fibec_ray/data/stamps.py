"""Notices when the data files of a run have changed since the run started.

A run keeps its own copy of the data, so a change does no harm; the user gets a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fibec_ray.data.described import Splits
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.splits import files
from fibec_ray.files.sealed import file_digest
from fibec_ray.files.storage import is_url


@dataclass(frozen=True)
class Stamp:
    """Size and time of a file, to notice changes."""

    path: str
    size: int
    """bytes"""
    mtime_ns: int
    digest: str

    def change(self) -> str:
        """What changed, '' if the content is the same. The file is read again only if its size or time differs."""
        path = Path(self.path)
        try:
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns):
                return ""
            same = status.st_size == self.size and file_digest(path) == self.digest
        except FileNotFoundError:
            return f"{path} is no longer there"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        return "" if same else f"{path} has changed since the run began"


def stamps_of(task: Splits, config: DataConfig) -> tuple[Stamp, ...]:
    """Stamps of all local data files; none for the hub and for URLs."""
    if not config.reads_files or is_url(config.path or ""):
        return ()
    train, test = files(task, config)
    try:
        found = [(path, path.stat()) for path in (*train, *test)]
        return tuple(Stamp(str(path.absolute()), at.st_size, at.st_mtime_ns, file_digest(path)) for path, at in found)
    except OSError:
        return ()  # reading the file gives the better error


def changes(stamps: Sequence[Stamp]) -> str:
    """'train.csv has changed since the run began, test.csv is no longer there', or ''."""
    return ", ".join(change for stamp in stamps if (change := stamp.change()))
