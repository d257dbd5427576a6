"""Writes a run for MLflow, in a local database or at a tracking server."""

from __future__ import annotations

import logging

from fibec_ray.analysis.export.scalars import Curves

LONGEST = 500
"""Characters of a parameter's value that every MLflow server accepts."""


def write(curves: Curves, dest: str | None) -> str:
    """dest: a tracking URI (None: the database RUN/mlflow.db)."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    uri = dest or f"sqlite:///{curves.run_dir / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("fibec_ray")
    run = client.create_run(found.experiment_id if found else client.create_experiment("fibec_ray"))
    client.set_tag(run.info.run_id, "mlflow.runName", curves.name)
    for start in range(0, len(curves.settings), 100):
        some = list(curves.settings.items())[start : start + 100]
        client.log_batch(run.info.run_id, params=[Param(key, str(value)[:LONGEST]) for key, value in some])
    for step in curves.steps:
        stamp_ms = run.info.start_time + int(1000 * step.wall_time_s)
        metrics = [Metric(name, value, stamp_ms, step.round) for name, value in step.values.items()]
        client.log_batch(run.info.run_id, metrics=metrics)
    client.set_terminated(run.info.run_id)
    return f"{uri}, run {run.info.run_id}; next: mlflow ui --backend-store-uri {uri}"
