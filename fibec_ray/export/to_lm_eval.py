"""Write a decoder for lm_eval, EleutherAI's evaluation harness: `fibec-ray export RUN --to lm-eval [DIR]`.

    DIR/lm_eval.yaml   the run file: `lm_eval run --config lm_eval.yaml` in DIR
    DIR/adapter        the adapter in PEFT's layout; instead, DIR/model: a whole model
    DIR/base           the base model, if its weights were drawn at random or come from a Python package
    DIR/tokenizer      the run's tokenizer, as generation needs it
    DIR/tasks          the run's own task with its test rows, if RUN is a run directory

Paths in the run file are relative to DIR, so DIR can move. A base in a folder of its own is named by its absolute path.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fibec_ray.data.encode_instructions import end_id
from fibec_ray.errors import DataError, ModelError
from fibec_ray.export.folder import drafted, free_folder
from fibec_ray.export.lm_eval_task import TASKS, OwnTask, own_task
from fibec_ray.export.load import quiet
from fibec_ray.export.saved import base_folder, read_about, saved_folder
from fibec_ray.export.write import CannotMerge, export_adapter, export_merged
from fibec_ray.files.run_dir import absolute, write_text
from fibec_ray.files.yaml_text import to_yaml
from fibec_ray.models.base_cache import NOTE
from fibec_ray.models.generation_tokenizer import for_generation
from fibec_ray.models.process_state import restored
from fibec_ray.runs.records import read_record
from fibec_ray.runs.saved_model import SavedModel

RUN_FILE = "lm_eval.yaml"
RELEASE = "0.4.13"
"""of lm_eval, whose keys the files use"""


@dataclass(frozen=True)
class Written:
    """What `export_lm_eval` wrote."""

    folder: Path
    task: OwnTask | None
    """the run's own task; None if RUN is an exported adapter, which has no test rows"""

    @property
    def command(self) -> str:
        """The command that scores the model, in the folder."""
        return _command(self.task)


@restored()
def export_lm_eval(run: Any, target: Path | None = None, *, base: str | None = None) -> Written:
    """Write the global model of a run, its test rows and a run file for lm_eval to a new folder.

    run: a run directory, or a folder that `export_adapter` wrote. target: None: RUN/lm-eval. base: as in `load`. Raises
    ModelError for a model that lm_eval cannot run, RunDirError if the target is not empty, DataError if the run's test
    rows cannot be read any more.
    """
    quiet()
    run_dir = absolute(Path(str(getattr(run, "folder", run))).expanduser())
    home = saved_folder(run_dir)
    about = read_about(home)
    _refuse_others(about, run_dir)
    target = free_folder(run_dir / "lm-eval" if target is None else target)
    tokenizer = about.backbone.with_preprocessor(home).preprocessor()
    end = end_id(tokenizer)
    task = _task(run_dir, about, tokenizer)
    with drafted(target) as draft:
        model = _write_model(about, run_dir, draft, base)
        for_generation(tokenizer, end).save_pretrained(draft / "tokenizer")
        if task is not None:
            (draft / TASKS).mkdir()
            task.write(draft / TASKS)
        write_text(draft / RUN_FILE, _run_file(about, model, task, end))
    return Written(target, task)


def _refuse_others(about: SavedModel, run: Path) -> None:
    """Raise ModelError for a model that lm_eval cannot run."""
    spec = about.backbone
    if spec.reads != "text":
        raise ModelError(
            f"--to lm-eval: {run} has {spec.title}, and lm_eval runs language models; score it in Python with "
            "fibec_ray.load(RUN).predict(INPUTS)"
        )
    if spec.encode_mode != "causal":
        raise ModelError(
            f"--to lm-eval: lm_eval runs decoders with their language-model head, and {run} has {spec.scores_by}; "
            "score it with `fibec-ray predict RUN --file FILE`, or train a decoder with backbone.head=causal_lm"
        )
    if not about.has_global:
        raise ModelError(
            f"--to lm-eval: method {about.method} has no global model, because trained tensors stay on the devices; "
            "export one device's model with `fibec-ray export RUN DIR --device N`, then DIR with --to lm-eval"
        )


def _task(run: Path, about: SavedModel, tokenizer: Any) -> OwnTask | None:
    if not (run / "config.yaml").is_file():
        return None
    record = read_record(run)
    try:
        return own_task(record, about, tokenizer)
    except DataError as error:
        raise DataError(
            f"--to lm-eval: {error}; or give {run / 'adapter'} instead of the run, which writes no task of its own"
        ) from error


@dataclass(frozen=True)
class _Model:
    """The weights that were written, as lm_eval's model takes them."""

    arguments: dict[str, str]
    batch_size: int


def _write_model(about: SavedModel, run: Path, draft: Path, base: str | None) -> _Model:
    home = saved_folder(run)
    if not (home / "adapter_config.json").is_file():  # trained whole
        export_adapter(run, draft / "model")
        return _Model({"pretrained": "model"}, about.batch_size)
    config = json.loads((home / "adapter_config.json").read_text(encoding="utf-8"))
    if "peft_type" not in config:
        _write_merged(about, run, draft / "model", base)
        return _Model({"pretrained": "model", "dtype": "float32"}, about.batch_size)
    export_adapter(run, draft / "adapter")
    source = about.backbone.found_at(home, base, about.base_path, "cpu").public_source()
    if source is None:
        shutil.copytree(base_folder(about, home), draft / "base", ignore=shutil.ignore_patterns(NOTE, ".*"))
        source = {"pretrained": "base"}
    # peft ignores position ids beside virtual tokens, so padding in front of a prompt would change its scores
    return _Model({**source, "peft": "adapter"}, 1 if config.get("num_virtual_tokens") else about.batch_size)


def _write_merged(about: SavedModel, run: Path, folder: Path, base: str | None) -> None:
    """A model of a PEFT kind that the peft library lacks."""
    try:
        export_merged(run, folder, base=base)
    except CannotMerge as error:
        raise ModelError(
            f"--to lm-eval: the peft library lacks {about.peft['kind']}, and it cannot be merged into the base, so "
            "lm_eval cannot load this model; score it with `fibec-ray predict RUN --file FILE`"
        ) from error


def _run_file(about: SavedModel, model: _Model, task: OwnTask | None, end: int) -> str:
    arguments = {"tokenizer": "tokenizer", "dtype": about.backbone.base_dtype, **model.arguments}
    if arguments["dtype"] != "float32":  # likelihoods in bfloat16 have three digits, so answers would tie
        arguments["softmax_dtype"] = "float32"
    values: dict[str, Any] = {"model": "hf", "model_args": arguments}
    if task is not None:
        values |= {"tasks": [task.name], "include_path": TASKS}
    values |= {"gen_kwargs": {"eos_token_id": end}, "batch_size": model.batch_size}
    values |= {"output_path": "results", "log_samples": True}
    return "".join(f"# {line}\n" for line in _notes(about, model, task)) + to_yaml(values)


def _notes(about: SavedModel, model: _Model, task: OwnTask | None) -> list[str]:
    lines = [
        f"{about.name}: method {about.method}, after round {about.round}. Written for lm_eval {RELEASE}.",
        "pip install 'lm_eval[hf]', then, in this folder, because paths are relative to it:",
        f"    {_command(task)}",
        "Add --device cuda:1 for another GPU, and --tasks NAMES for other tasks.",
    ]
    if Path(model.arguments["pretrained"]).is_absolute():
        lines.append("The base model is outside this folder; change `pretrained` if it moves.")
    if task is not None and task.logged is not None:
        lines.append(f"The run logged {task.logged:.4f} for what lm_eval calls {task.metric}.")
    if task is not None and task.num_differing:
        lines.append(
            f"In {task.num_differing} of {task.num_rows} rows lm_eval sees other tokens than the run did "
            f"(data.max_length={about.max_length}), so the scores may differ."
        )
    return lines


def _command(task: OwnTask | None) -> str:
    return f"lm_eval run --config {RUN_FILE}" + ("" if task else " --tasks hellaswag")
