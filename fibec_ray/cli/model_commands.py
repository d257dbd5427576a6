"""The commands that use what a run leaves: predict, export."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fibec_ray.cli.argument_types import RUNS_SAVED_CODE, at_least_one, path, place
from fibec_ray.cli.parsing import Parser, Parsers
from fibec_ray.errors import ConfigError

if TYPE_CHECKING:
    from fibec_ray.export.predict import TrainedModel
    from fibec_ray.tasks.prediction import Prediction

TITLE = "use the model"
LM_EVAL = "lm-eval"


def add(parsers: Parsers) -> None:
    """Add these commands to the parser."""
    predict = parsers.add_parser("predict", help="predict with a run's model")
    predict.epilog = RUNS_SAVED_CODE
    _add_model(predict)
    predict.add_argument("--text", action="append", metavar="TEXT", help="an input; may be repeated")
    predict.add_argument(
        "--text-pair", action="append", metavar="TEXT", help="second text of the input, for tasks on pairs of texts"
    )
    predict.add_argument("--file", type=path, metavar="FILE", help="inputs from a CSV, TSV, JSON lines or Parquet file")
    predict.add_argument("--columns", nargs="+", metavar="NAME", help="columns with the text (default: the task's)")
    predict.add_argument("--out", type=path, metavar="FILE", help="write the predictions there, as .csv or .jsonl")
    predict.add_argument("--json", action="store_true", help="print a JSON list with the probability of every class")
    predict.add_argument("--on", metavar="DEVICE", help="torch device, such as cpu or cuda:0 (default: a GPU if any)")
    predict.add_argument("--batch-size", type=at_least_one, metavar="N", help="default: as in the run's evaluation")
    predict.add_argument(
        "--max-new-tokens", type=at_least_one, metavar="N", default=64, help="of an answer in text (default: 64)"
    )
    predict.set_defaults(command=_predict, prints=True)

    export = parsers.add_parser("export", help="write a run's model, or its round log, for other tools")
    export.epilog = RUNS_SAVED_CODE
    _add_model(export)
    export.add_argument(
        "dir",
        nargs="?",
        type=path,
        metavar="DIR",
        help="folder for the adapter (PEFT's layout); with --to lm-eval, for all its files (default: RUN/lm-eval)",
    )
    export.add_argument("--merged", type=path, metavar="DIR", help="folder for a plain transformers model instead")
    export.add_argument(
        "--to",
        choices=(LM_EVAL, "tensorboard", "wandb", "mlflow"),
        help="lm-eval: write the model and the run's test rows for EleutherAI's lm_eval; others: write the round log "
        "for this tool",
    )
    export.add_argument(
        "--dest", type=place, metavar="PLACE", help="of the round log: folder or MLflow tracking URI (default: in RUN)"
    )
    export.set_defaults(command=_export)


def _add_model(parser: Parser) -> None:
    parser.add_argument("run", type=place, metavar="RUN", help="run directory or its URL, or an exported adapter")
    parser.add_argument("--device", type=int, metavar="N", help="federated device, for its own model (default: global)")
    parser.add_argument("--base", type=place, metavar="DIR", help="folder or hub id of the base model, if it has moved")


def _predict(arguments: argparse.Namespace) -> None:
    from fibec_ray.export.files import read_inputs, refuse_other_suffix, write_predictions
    from fibec_ray.export.load import load

    if (arguments.file is None) == (arguments.text is None):
        raise ConfigError("predict: give inputs with --text TEXT (may be repeated) or with --file FILE, one of the two")
    if arguments.out is not None:
        refuse_other_suffix(arguments.out)
    model = load(arguments.run, arguments.device, base=arguments.base, on=arguments.on)
    if arguments.file is not None:
        names, inputs = read_inputs(arguments.file, model.about, arguments.columns or ())
    else:
        names, inputs = _typed(arguments, model)
    found = model.predict(inputs, arguments.batch_size, arguments.max_new_tokens)
    if arguments.out is not None:
        write_predictions(arguments.out, names, inputs, found)
        print(f"{arguments.out}: {len(found)} predictions")
    else:
        _show(inputs, found, arguments.json)


def _typed(arguments: argparse.Namespace, model: TrainedModel) -> tuple[list[str], list[Any]]:
    """Inputs from --text and --text-pair, and the names of their columns."""
    from fibec_ray.tasks.base import NOT_FROM_TABLES

    names = list(model.about.task.typed_columns)
    if not names:
        raise ConfigError(f"--text: {NOT_FROM_TABLES}")
    texts, pairs = arguments.text, arguments.text_pair
    if pairs is not None and len(pairs) != len(texts):
        raise ConfigError(f"--text-pair: {len(pairs)} given for {len(texts)} --text; give one for each")
    return names[: 1 if pairs is None else 2], texts if pairs is None else list(zip(texts, pairs, strict=True))


def _show(inputs: list[Any], found: list[Prediction], as_json: bool) -> None:
    import json

    from fibec_ray.cli.entry import one_line

    if as_json:
        print(json.dumps([prediction.plain() for prediction in found], indent=2, ensure_ascii=False))
        return
    for value, prediction in zip(inputs, found, strict=True):
        shown = one_line(value if isinstance(value, str) else " | ".join(value))
        if prediction.text is not None:
            print(f"{shown}\n  {prediction.text}")
        else:
            print(f"{prediction.line()}  {shown}")


def _export(arguments: argparse.Namespace) -> None:
    if arguments.to == LM_EVAL:
        _export_lm_eval(arguments)
        return
    chosen = [name for name in ("dir", "merged", "to") if getattr(arguments, name) is not None]
    if len(chosen) != 1:
        raise ConfigError(
            "export: give one of DIR (the adapter), --merged DIR (a plain transformers model), --to lm-eval [DIR] (for "
            "lm_eval) or --to TOOL (the round log for tensorboard, wandb or mlflow)"
        )
    if arguments.dest is not None and arguments.to is None:
        raise ConfigError("--dest: has no effect without --to; leave it out")
    if arguments.to is not None:
        _export_log(arguments)
        return
    from fibec_ray.export.write import export_adapter, export_merged

    options = {"device": arguments.device, "base": arguments.base}
    if arguments.merged is not None:
        print(f"{export_merged(arguments.run, arguments.merged, **options)}: a plain transformers model")
    else:
        print(f"{export_adapter(arguments.run, arguments.dir, **options)}: an adapter; README.md says how to load it")


def _export_lm_eval(arguments: argparse.Namespace) -> None:
    if arguments.merged is not None or arguments.dest is not None:
        name = "merged" if arguments.merged is not None else "dest"
        raise ConfigError(f"--{name}: has no effect with --to lm-eval; give the folder as DIR")
    if arguments.device is not None:
        raise ConfigError(
            "--device: has no effect with --to lm-eval, which takes the global model; write the device's model with "
            "`fibec-ray export RUN DIR --device N`, then export DIR with --to lm-eval"
        )
    from fibec_ray.export.to_lm_eval import export_lm_eval

    written = export_lm_eval(path(arguments.run), arguments.dir, base=arguments.base)
    print(f"{written.folder}: for lm_eval (pip install 'lm_eval[hf]')\n  cd {written.folder} && {written.command}")
    if written.task is not None and written.task.logged is not None:
        rows = f"{written.task.num_rows} test rows"
        print(
            f"  {written.task.name}, {rows}: expect {written.task.metric} {written.task.logged:.4f}, as the run logged"
        )


def _export_log(arguments: argparse.Namespace) -> None:
    from fibec_ray.analysis.export import export

    for name in ("device", "base"):
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name}: has no effect with --to, which writes the round log; leave it out")
    print(export(path(arguments.run), arguments.to, arguments.dest))
