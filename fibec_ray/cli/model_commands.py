"""The commands that hand a run's results to other tools: export."""

from __future__ import annotations

import argparse

from fibec_ray.cli.argument_types import path, place
from fibec_ray.cli.parsing import Parsers

TITLE = "use the model"


def add(parsers: Parsers) -> None:
    export = parsers.add_parser("export", help="write a run's round log for TensorBoard, W&B or MLflow")
    export.add_argument("run", type=path, metavar="RUN", help="run directory")
    export.add_argument("--to", choices=("tensorboard", "wandb", "mlflow"), required=True)
    export.add_argument("--dest", type=place, metavar="PLACE", help="folder or MLflow tracking URI (default: in RUN)")
    export.set_defaults(command=_export)


def _export(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.export import export

    print(export(arguments.run, arguments.to, arguments.dest))
