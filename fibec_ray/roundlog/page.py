"""The page `docs/round-log.md`, from the columns. `python -m fibec_ray.cli.reference` writes it."""

from __future__ import annotations

import pyarrow as pa

from fibec_ray.roundlog.schema import METADATA_KEYS, NONDETERMINISTIC, TABLES
from fibec_ray.roundlog.versions import RENAMED, SCHEMA_MAJOR, SCHEMA_VERSION

_INTRODUCTION = f"""# The round log

<!-- Generated: python -m fibec_ray.cli.reference -->

A run writes five Parquet tables into its run directory: `rounds/`, `devices/`, `layers/`, `batches/` and
`evaluations/`. Each is a folder with one part file per round: `init.parquet` for the initialisation phase, then
`part-000000.parquet` and so on. Under a schedule that combines a few updates per round (`async`, `buffered`), a part
holds as many rounds as combine one cohort's updates. It is named after the last one. A part file is renamed into place
when it is complete, so you can read the log while the run goes on.

Read it with `fibec_ray.open_run` ([custom analysis](recipes.md) has examples) or with any Parquet reader:
`SELECT * FROM 'RUN/rounds/*.parquet'`.

- **Columns marked ~** can differ between two runs of the same experiment. All others have the same bits for the same
  seed.
- **`num_steps`, `num_samples`, `num_samples_seen` and `train_loss`** are about the shared model. If a method trains
  another model as well (a device's own model, or a head alone), that shows only in `flops` and in the times.
  Fine-tuning before an evaluation is not logged.
- **Regressions** (metrics `r2` and `pearson`) have no accuracies. Their losses are half squared errors.
- **Samples without text** have no length.
- **Generated text**: the loss of a sample is the mean over the tokens of its response. `accuracy` is the share of
  responses that greedy decoding gives exactly, end included.

## Versions

The Parquet metadata of every part holds `schema_version` (now {SCHEMA_VERSION}), `schema_major` (now {SCHEMA_MAJOR}),
{", ".join(f"`{key}`" for key in METADATA_KEYS[:-1])} and `config`, the resolved experiment.

A newer version of the same major only adds nullable columns and tables. `fibec_ray` reads it: it ignores what it does
not know and fills what is missing with nulls. A newer major has changed the meaning of a column and is rejected.
Older logs are read under today's names: {", ".join(f"`{old}` is now `{new}`" for old, new in RENAMED.items())}."""


def _row(column: pa.Field) -> str:
    unit, doc = (column.metadata[key].decode() for key in (b"unit", b"doc"))
    mark = " ~" if column.name in NONDETERMINISTIC else ""
    kind = f"{column.type}, may be null" if column.nullable else str(column.type)
    return f"| `{column.name}`{mark} | {kind} | {unit} | {doc} |"


def round_log_page() -> str:
    """The page, with one table for each schema."""
    titles = {
        "rounds": "one row per round",
        "devices": "one row per finished device-round",
        "layers": "one row per layer and round (none if the method does not score layers)",
        "batches": "one row per device and fixed batch, in each round in which its curriculum scored it",
        "evaluations": "one row per device in each evaluated round",
    }
    parts = [_INTRODUCTION]
    for table, schema in TABLES.items():
        head = f"## `{table}`: {titles[table]}\n\n| column | type | unit | meaning |\n|---|---|---|---|"
        parts.append("\n".join([head, *map(_row, schema)]))
    return "\n\n".join(parts) + "\n"
