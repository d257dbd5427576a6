"""Short names of settings on the command line, and names from other libraries: `lr=1e-3`, `clients_per_round=5`.

Imports nothing heavy, because the command line needs it before it loads anything else.
"""

from __future__ import annotations

from typing import Any

from fibec_ray.errors import ConfigError

SECTIONS = (
    "name",
    "seed",
    "rounds",
    "num_devices",
    "cohort_size",
    "task",
    "method",
    "data",
    "partition",
    "backbone",
    "local",
    "sampler",
    "schedule",
    "server",
    "evaluation",
    "system",
    "fleet",
    "checkpoint",
)
"""The keys of an experiment; a test compares them with the model."""

ALIASES = {
    "num_rounds": "rounds",
    "num_clients": "num_devices",
    "clients": "num_devices",
    "devices": "num_devices",
    "clients_per_round": "cohort_size",
    "devices_per_round": "cohort_size",
    "algorithm": "method",
    "strategy": "method",
    "dataset": "task",
    "model": "backbone",
    "lr": "local.learning_rate",
    "learning_rate": "local.learning_rate",
    "batch_size": "local.batch_size",
    "epochs": "local.epochs",
    "local_epochs": "local.epochs",
    "max_steps": "local.max_steps",
    "optimizer": "local.optimizer",
    "momentum": "local.momentum",
    "weight_decay": "local.weight_decay",
    "max_grad_norm": "local.clip",
    "alpha": "partition.alpha",
    "dirichlet_alpha": "partition.alpha",
    "lora_r": "method.peft.r",
    "lora_rank": "method.peft.r",
    "rank": "method.peft.r",
    "lora_alpha": "method.peft.alpha",
    "lora_dropout": "method.peft.dropout",
    "target_modules": "method.peft.target_modules",
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "dtype": "backbone.dtype",
    "gradient_checkpointing": "backbone.checkpointing",
    "eval_every": "evaluation.every",
    "num_actors": "fleet.num_actors",
    "device": "fleet.device",
}
"""Name -> setting."""

HINTS = {
    "fraction_fit": "cohort_size",
    "client_fraction": "cohort_size",
    "participation": "cohort_size",
    "fp16": "backbone.dtype",
    "num_gpus": "fleet.gpus_per_actor",
    "gpus": "fleet.gpus_per_actor",
    "num_cpus": "fleet.cpus_per_actor",
    "num_workers": "fleet.num_actors",
    "scheduler": "local.schedule",
    "lr_scheduler": "local.schedule",
    "data_path": "data.path",
    "resume": "--resume",
    "output_dir": "--out",
    "out": "--out",
}
"""Names from other libraries with another meaning or unit -> what to write instead. They are advised, not accepted."""

DTYPES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp32": "float32", "float32": "float32"}
"""Flag -> `backbone.dtype`, as in `bf16=true`."""


def is_setting(key: str) -> bool:
    """Whether an override may start with this key."""
    return key.partition(".")[0] in SECTIONS or key in ALIASES or key in DTYPES


def expand(keys: list[str], value: Any) -> tuple[list[str], Any]:
    """Replace a short name by its setting: (["lr"], 0.1) -> (["local", "learning_rate"], 0.1).

    Raises ConfigError for a dtype flag with a value that is not true or false.
    """
    key = ".".join(keys)
    if key in DTYPES:
        if not isinstance(value, bool):
            raise ConfigError(f"{key}: expected true or false, found {value!r}; or set backbone.dtype={DTYPES[key]}")
        other = next(dtype for dtype in DTYPES.values() if dtype != DTYPES[key])
        return ["backbone", "dtype"], DTYPES[key] if value else other
    return (ALIASES[key].split(".") if key in ALIASES else keys), value
