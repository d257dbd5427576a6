"""Runs the notebooks in an empty folder and saves them with their outputs: `python analysis/execute.py`.

GitHub shows what is saved. Run it after changing a notebook; it takes about two minutes on two cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TIMEOUT_S = 600


def executed(path: Path, folder: Path) -> Any:
    """The notebook with the outputs of all its cells. folder: where it runs and leaves its runs."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=TIMEOUT_S, record_timing=False, resources=where).execute()
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}  # not the version, which differs by machine
    return notebook


def main() -> None:
    """Run every notebook."""
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)
        print(path)


if __name__ == "__main__":
    main()
