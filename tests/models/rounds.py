"""A process that runs whole experiments: prints the digests of their adapters. Started by test_backends_end_to_end.py.

DeepSpeed's process group and variables are the process's, and nothing is left of them when it ends. Arguments: a
folder, and files of settings; each run is in a folder of its file's name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from fibec_ray.config.load import check
from fibec_ray.runs.simulation import simulate


def ran(folder: Path, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Digest and backend of each run, by its name."""
    found = {}
    for name, of_run in settings.items():
        run = simulate(check(of_run, name), folder / name)
        summary = json.loads((run.folder / "summary.json").read_text())
        found[name] = {"digest": run.adapter_digest, "backend": summary["backend"]}
    return found


def main(folder: Path, files: list[Path]) -> None:
    found = ran(folder, {file.stem: yaml.safe_load(file.read_text()) for file in files})
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/" in line]
    print(json.dumps({"runs": found, "shared_memory": mapped}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(file) for file in sys.argv[2:]])
