"""The columns of the round log, their units and meanings. The writer checks its rows against them.

`page.py` writes them into the documentation, and `versions.py` says which version of the log added which.
"""

from __future__ import annotations

from functools import partial

import pyarrow as pa

METADATA_KEYS = ("run_id", "seed", "git_commit", "config")
"""Metadata that the writer puts into every part file, as strings, beside `schema_version`."""

NONDETERMINISTIC = ("wall_time_s", "compute_s", "peak_memory_bytes", "actor", "attempt", "peak_gpu_memory_bytes")
"""Columns that can differ between two equal runs: where and how fast the work was done."""


I32, I64, F64, TEXT, FLAG = pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.bool_()
NAMED = pa.map_(TEXT, F64)


def _column(name: str, kind: pa.DataType, unit: str, doc: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit, "doc": doc})


_optional = partial(_column, nullable=True)


_ROUND = _column(
    "round",
    I32,
    "index",
    "communication round, from 0; -1 is setup, before training. Messages and figures count one higher: 0 is before "
    "training, then 1, 2 ...",
)

ROUNDS = pa.schema(
    [
        _ROUND,
        _column("sim_time_s", F64, "s", "simulated time at the end of the round, since the start of the run"),
        _column("wall_time_s", F64, "s", "real time at the end of the round, since the start of the run"),
        _column("bytes_up", I64, "B", "sent by devices in this round"),
        _column("bytes_down", I64, "B", "sent to devices in this round"),
        _column("bytes_total", I64, "B", "sent both ways since the start of the run"),
        _column("num_devices", I32, "devices", "size of the cohort; all devices in round -1"),
        _column("num_lost", I32, "devices", "devices of the cohort that sent no update"),
        _column(
            "num_samples", I64, "samples", "training samples visited in this round, repeats by local epochs included"
        ),
        _column("num_samples_total", I64, "samples", "num_samples, summed since the start of the run"),
        _column("num_batches", I64, "batches", "different batches that devices trained on in this round"),
        _column("num_steps", I64, "steps", "optimiser steps of all devices in this round"),
        _column("flops", F64, "FLOP", "floating point operations of all devices in this round"),
        _optional("learning_rate", F64, "1", "local learning rate; null where nothing was trained"),
        _optional(
            "train_loss",
            F64,
            "nats",
            "mean over the steps of this round, on training data; rises as a curriculum adds harder data; null where "
            "nothing was trained",
        ),
        _optional("data_fraction", F64, "1", "batches visible / all batches, mean over the cohort"),
        _optional("kept_fraction", F64, "1", "personal entries that the mask lets change / all, mean over the cohort"),
        _optional("mask_overlap", F64, "1", "devices.mask_overlap, mean over the cohort's returning devices"),
        _optional(
            "global_accuracy",
            F64,
            "1",
            "global model on the test set; null if not evaluated, if heads are personal, and in a regression",
        ),
        _optional("global_loss", F64, "nats", "global model on the test set, mean over samples"),
        _optional("global_metric", F64, "1", "global model on the test set, in the task's own metric"),
        _optional("personal_accuracy", F64, "1", "every device's own model on its own test shard, pooled"),
        _optional("personal_loss", F64, "nats", "every device's own model on its own test shard, mean over samples"),
        _optional("personal_metric", F64, "1", "personal predictions, pooled, in the task's own metric"),
        _optional("personal_accuracy_trained", F64, "1", "personal_accuracy over devices that trained at least once"),
        _optional("num_devices_trained", I32, "devices", "devices that trained at least once so far"),
        _optional("adapter_digest", TEXT, "hash", "of the shared tensors at the end of the round"),
        _optional(
            "num_quarantined",
            I32,
            "devices",
            "devices of the cohort whose update was rejected and not averaged; means over the cohort leave them out",
        ),
        _optional(
            "global_perplexity",
            F64,
            "1",
            "exp of the global model's mean loss over all tokens of the test set's responses; only for answers in text",
        ),
        _optional(
            "personal_perplexity",
            F64,
            "1",
            "the same for every device's own model on its own test shard, over all tokens together",
        ),
        _optional(
            "global_metrics",
            NAMED,
            "metric's own",
            "further figures of the global model on the test set, by name; null for tasks that have none",
        ),
        _optional("personal_metrics", NAMED, "metric's own", "the same for personal predictions, pooled"),
        _optional("energy_j", F64, "J", "simulated energy of all devices in this round: devices.energy_j, summed"),
        _optional(
            "energy_total_j",
            F64,
            "J",
            "energy_j, summed since the start of the run; null in a run that an earlier release began",
        ),
        _optional(
            "num_dropped",
            I32,
            "devices",
            "devices that were drawn and sent nothing because they dropped out or were too late; num_devices and all "
            "costs but the dropped_... columns leave them out",
        ),
        _optional(
            "mean_staleness",
            F64,
            "rounds",
            "devices.staleness, mean over the cohort; 0 unless the schedule combines late updates",
        ),
        _optional("num_late", I32, "devices", "devices of the cohort that started from the model of an earlier round"),
        _optional(
            "epsilon",
            F64,
            "1",
            "privacy budget spent by all rounds so far, at method.privacy's delta; null without a guarantee",
        ),
        _optional(
            "dropped_bytes",
            I64,
            "B",
            "predicted, for the devices of num_dropped: received and sent. Who drops out has received the model and "
            "sends nothing; who is late sends an update that is ignored",
        ),
        _optional("dropped_flops", F64, "FLOP", "predicted operations of the devices of num_dropped"),
        _optional("dropped_energy_j", F64, "J", "predicted energy of the devices of num_dropped"),
    ]
)
"""One row per round."""

DEVICES = pa.schema(
    [
        _ROUND,
        _column("device", I32, "index", "the device"),
        _column("num_samples", I64, "samples", "size of the device's shard: its weight n_k in averages"),
        _column("num_samples_seen", I64, "samples", "training samples visited, repeats by local epochs included"),
        _column("num_batches_seen", I64, "batches", "different batches trained on"),
        _column("num_steps", I64, "steps", "optimiser steps"),
        _optional("learning_rate", F64, "1", "local learning rate; null where nothing was trained"),
        _optional("train_loss", F64, "nats", "mean over the steps; null where nothing was trained"),
        _optional(
            "difficulty_seen", F64, "method's own", "mean of the curriculum's difficulty score over the samples seen"
        ),
        _optional("true_difficulty_seen", F64, "1", "mean true difficulty of the samples seen, if the task knows it"),
        _optional("length_seen", F64, "tokens", "mean length of the samples seen"),
        _optional("kept_fraction", F64, "1", "personal entries that the mask lets change / all"),
        _optional(
            "mask_overlap",
            F64,
            "1",
            "Jaccard index of the entries that the mask lets change now and those of the last participation",
        ),
        _optional(
            "layer_keep_ratio",
            F64,
            "1",
            "share of the layers to communicate by the spectrum of the device's loss, if the method estimates it",
        ),
        _optional("fisher_trace", F64, "1", "sum of the diagonal Fisher information behind the mask"),
        _optional("difficulty_loss_rank_corr", F64, "1", "Spearman correlation of difficulty and loss over the shard"),
        _optional(
            "difficulty_length_rank_corr", F64, "1", "Spearman correlation of difficulty and length over the shard"
        ),
        _optional(
            "difficulty_true_rank_corr",
            F64,
            "1",
            "Spearman correlation of scored and true difficulty over the shard",
        ),
        _column("flops", F64, "FLOP", "floating point operations of this device-round"),
        _column(
            "sim_time_s",
            F64,
            "s",
            "simulated duration of this device-round: compute and transfer, from flops and bytes of this row; as "
            "predicted before the round where schedule or availability depends on it",
        ),
        _column("bytes_down", I64, "B", "received: shared tensors and the objective's control"),
        _column("bytes_up_delta", I64, "B", "sent: the change of the shared tensors, as method.uplink encodes it"),
        _column("bytes_up_extras", I64, "B", "sent: what the method's parts add (Fisher factors, control variates)"),
        _column("bytes_up", I64, "B", "sent in all"),
        _column("compute_s", F64, "s", "real time that the device's work took"),
        _column("peak_memory_bytes", I64, "B", "highest memory of the process that did the work"),
        _column("actor", TEXT, "name", "who did the work"),
        _column("attempt", I32, "count", "how often this work was lost with an actor before; 0 is the first try"),
        _optional(
            "update_digest",
            TEXT,
            "hash",
            "of what the device sent, then of what it keeps (personal tensors, memories), if it keeps anything",
        ),
        _optional(
            "quarantined",
            TEXT,
            "reason",
            "why the update was rejected and not averaged; null if it was averaged",
        ),
        _optional(
            "peak_gpu_memory_bytes",
            I64,
            "B",
            "highest GPU memory so far of the process that did the work: what torch reserved (max_memory_reserved) on "
            "its fullest GPU plus 0.545 GB for CUDA's context (as measured on an H200), about what nvidia-smi shows. "
            "The trial of fleet.lanes: auto does not count; null on a CPU",
        ),
        _optional(
            "energy_j",
            F64,
            "J",
            "simulated energy of this device-round: compute and transfer, with the numbers of system",
        ),
        _optional(
            "staleness",
            I32,
            "rounds",
            "rounds that ended between the device's start and this one, which combined its update; the device trained "
            "with the learning rate and the batches of round - staleness",
        ),
    ]
)
"""One row per finished device-round: the scalar fields of `reports.DeviceReport`."""

LAYERS = pa.schema(
    [
        _ROUND,
        _column("layer", I32, "index", "transformer block, from 0 at the input"),
        _optional(
            "sensitivity",
            F64,
            "method's own",
            "score that decides which layers are shared, mean over devices weighted by n_k",
        ),
        _column("shared", FLAG, "", "whether the layer's adapter is communicated (a global aggregation layer, GAL)"),
        _optional("fisher_mass", F64, "1", "sum of the layer's diagonal Fisher information, mean over the cohort"),
        _optional(
            "kept_neurons", F64, "neurons", "neurons of the layer that the mask lets change, mean over the cohort"
        ),
    ]
)
"""One row per layer and round; none where a method does not look at layers."""

BATCHES = pa.schema(
    [
        _ROUND,
        _column("device", I32, "index", "the device"),
        _column("batch", I32, "index", "the fixed batch, as the seeded split of the device's samples left it"),
        _column("num_samples", I64, "samples", "size of the batch"),
        _column("difficulty", F64, "method's own", "score by which the curriculum orders batches"),
        _optional("loss", F64, "nats", "mean loss of the batch at the model that scored it"),
        _column("length", F64, "tokens", "mean length of the batch's samples; 0 where they are not text"),
        _optional("true_difficulty", F64, "1", "mean true difficulty of the samples, where the task knows it"),
    ]
)
"""One row per device and fixed batch, in each round in which the device's curriculum scored them."""

EVALUATIONS = pa.schema(
    [
        _ROUND,
        _column("device", I32, "index", "the device"),
        _column("num_samples", I64, "samples", "size of the device's own test shard; 0 has no scores"),
        _column("trained", FLAG, "", "whether the device has trained at least once so far"),
        _optional("accuracy", F64, "1", "the device's own model on its own test shard; null in a regression"),
        _optional("loss", F64, "nats", "the device's own model on its own test shard, mean over samples"),
        _optional(
            "speed_class",
            TEXT,
            "name",
            "the device's class, as system names it, or slow, medium or fast: thirds of all devices by compute speed; "
            "null where all are alike",
        ),
    ]
)
"""One row per device in each round that was evaluated. Pooled by num_samples they are rounds.personal_accuracy."""

TABLES = {"rounds": ROUNDS, "devices": DEVICES, "layers": LAYERS, "batches": BATCHES, "evaluations": EVALUATIONS}
"""Schema by table; the name is the folder's name in the run directory too."""

KEYS = ("round", "device", "layer", "batch")
"""Columns that tell a table's rows apart, as far as it has them, in the order that its rows are read in."""
