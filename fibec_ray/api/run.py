"""`fibec_ray.run`: runs an experiment from Python."""

from __future__ import annotations

from contextlib import nullcontext
from os.path import expanduser
from pathlib import Path
from typing import Any

from fibec_ray.api.data import data_settings
from fibec_ray.api.results import Run
from fibec_ray.api.session import Callbacks, prepared, warn, watched
from fibec_ray.api.settings import Source, experiment_of
from fibec_ray.config.names import config_folder
from fibec_ray.files.run_dir import taken
from fibec_ray.files.storage import is_url
from fibec_ray.runs.begin import begin, workplace


def run(
    experiment: Source | None = None,
    *,
    out: str | Path | None = None,
    data: Any = None,
    resume: bool = False,
    callbacks: Callbacks = (),
    progress: bool | None = None,
    **changes: Any,
) -> Run:
    """Run an experiment and return its results.

        run = fibec_ray.run("quickstart", method="fedavg", rounds=4, local={"learning_rate": 0.01})

    experiment: the name of a packaged experiment, the path of a YAML file, a dict of settings, or an Experiment. By
        default a classifier of your own `data`, or else experiment.yaml in the working directory.
    out: run directory or its URL; by default runs/NAME, then runs/NAME-2 and so on.
    data: your own data: a CSV, JSON Lines or Parquet file, a polars or pandas frame, or a `datasets.Dataset`. A frame
        is written beside the run as Parquet. A mapping changes the `data` section.
    resume: continue the run of the same experiment in `out`, if there is one.
    callbacks: objects that are called while the run goes on; see `fibec_ray.Callback`.
    progress: show a progress bar; by default in notebooks and terminals only.
    changes: settings to change, such as rounds=4. Mappings are merged, so that local={"epochs": 2} keeps the other
        settings of `local`; a mapping with `kind` replaces a part. `**{"local.epochs": 2}` is the same.

    Ctrl-C stops the run after closing its files; `fibec_ray.open_run(out).resume()` continues it. Raises UserError for
    input that you can fix, RunError for a run that failed. Nothing is written if the input is refused.
    """
    with prepared():
        source = config_folder() / "own-data.yaml" if experiment is None and data is not None else experiment
        ready = experiment_of(source, changes | data_settings(data, out))
        place = (
            nullcontext(str(out) if is_url(out) else expanduser(out))
            if out is not None
            else taken(Path("runs"), ready.name)
        )
        with (
            place as where,
            workplace(str(where), resume, warn) as folder,
            watched(ready, callbacks, progress, str(where)) as callback,
        ):
            begin(ready, folder, resume, callback)
    return Run(where)
