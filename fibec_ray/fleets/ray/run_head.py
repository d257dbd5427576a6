"""Run head.py with the fibec_ray of the driver, which starts this file as a program.

A driver may import fibec_ray from its working directory, and a new interpreter may find another version or none. Ray's
workers then look in the same places as the driver, but only after they have preloaded modules. So nothing is preloaded
if a new interpreter does not find the driver's version.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path

NAME = "fibec_ray"


def import_package() -> bool:
    """Import the package that this file belongs to. Returns True if a new interpreter finds the same one by itself."""
    root = Path(__file__).absolute().parents[3]
    found, own = find_spec(NAME), PathFinder.find_spec(NAME, [str(root)])
    assert own is not None and own.loader is not None and own.origin is not None
    sys.path.append(str(root))  # last: a user's queue.py next to the package must not shadow Python's
    sys.modules[NAME] = package = module_from_spec(own)
    own.loader.exec_module(package)
    return found is not None and found.origin is not None and Path(found.origin).samefile(own.origin)


if __name__ == "__main__":
    may_preload = import_package()
    from fibec_ray.fleets.ray.head import main

    main(may_preload)
