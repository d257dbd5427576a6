"""Simulate federated LoRA fine-tuning of language models on Ray.

    import fibec_ray

    run = fibec_ray.run("quickstart", rounds=4)
    run.best()        # the highest test score and the round it was reached in
    run.rounds()      # the round log as a polars frame
    run.figure()      # accuracy by round
    run.load()        # the trained model

Every name below is loaded when it is first used, so that the import itself takes milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fibec_ray.api.results import Best, Run, open_run
    from fibec_ray.api.run import run
    from fibec_ray.api.sweeps import Sweep, open_sweep, sweep
    from fibec_ray.config.experiment import Experiment
    from fibec_ray.errors import FibecError, RunError, UserError
    from fibec_ray.export.load import load
    from fibec_ray.method import Method
    from fibec_ray.runs.callbacks import Callback

    __version__: str

__all__ = [
    "Best",
    "Callback",
    "Experiment",
    "FibecError",
    "Method",
    "Run",
    "RunError",
    "Sweep",
    "UserError",
    "__version__",
    "load",
    "open_run",
    "open_sweep",
    "run",
    "sweep",
]

_HOMES = {
    "Best": "fibec_ray.api.results",
    "Callback": "fibec_ray.runs.callbacks",
    "Experiment": "fibec_ray.config.experiment",
    "FibecError": "fibec_ray.errors",
    "Method": "fibec_ray.method",
    "Run": "fibec_ray.api.results",
    "RunError": "fibec_ray.errors",
    "Sweep": "fibec_ray.api.sweeps",
    "UserError": "fibec_ray.errors",
    "load": "fibec_ray.export.load",
    "open_run": "fibec_ray.api.results",
    "open_sweep": "fibec_ray.api.sweeps",
    "run": "fibec_ray.api.run",
    "sweep": "fibec_ray.api.sweeps",
}
"""The module that each public name is loaded from."""

if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> object:
        """Load a public name when it is first used."""
        if name == "__version__":
            value = _version()
        elif name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module 'fibec_ray' has no attribute {name!r}")
        globals()[name] = value
        return value

    def _version() -> str:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("fibec_ray")
        except PackageNotFoundError:  # a source folder on the path, not installed
            return "0+unknown"


def __dir__() -> list[str]:
    """List the public names, loaded or not, for completion in notebooks and shells."""
    return sorted(__all__)
