"""The folder that `fibec-ray init` makes: copies of the files beside this one."""

from __future__ import annotations

import shutil
from pathlib import Path

from fibec_ray.errors import RunDirError

FILES = ("experiment.yaml", "README.md", "methods/mine.yaml", "my_part.py")


def write(folder: Path) -> tuple[str, ...]:
    """Copies the files into a folder that is new or empty, and returns their names. Hidden files may be there.

    Raises RunDirError; then nothing is left behind.
    """
    made: list[Path] = []
    try:
        if there := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
            raise RunDirError(f"{folder.absolute()}: has files already ({', '.join(there[:5])}); name a new folder")
    except FileNotFoundError:
        made.append(folder)
    except OSError as error:
        raise RunDirError(f"{folder}: cannot be read ({error.strerror}); name a new folder") from error
    try:
        for name in FILES:
            target = folder / name
            if target.parent != folder and not target.parent.exists():
                made.append(target.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            made.append(target)
            shutil.copyfile(Path(__file__).parent / name, target)
    except OSError as error:
        for path in reversed(made):
            path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        raise RunDirError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
    return FILES
