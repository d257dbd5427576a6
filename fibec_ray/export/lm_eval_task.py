"""A run's own task for lm_eval: its test rows with the prompts of training, and the YAML that describes them.

    text answers   generate_until, exact_match: greedy decoding must give the response
    words          multiple_choice, acc: the verbaliser's word with the highest likelihood after the prompt

Both equal the run's `global_accuracy`. Prompts are cut to data.max_length as in the run; responses are written whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fibec_ray.data.encode_instructions import end_id
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.data.questions import Questions
from fibec_ray.data.table_file import write_table
from fibec_ray.encoder import Encoder
from fibec_ray.errors import DataError
from fibec_ray.export.lm_eval_prompts import answer_tokens, texts_as_encoded
from fibec_ray.files.run_dir import write_yaml
from fibec_ray.models.generation_tokenizer import for_generation
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.records import Record
from fibec_ray.runs.saved_model import SavedModel
from fibec_ray.tasks.base import at_most

TASKS = "tasks"
"""folder of the task's files, relative to the run file's"""
METRICS = {"mcc": ("mcc", "matthews_corrcoef"), "accuracy_f1": ("f1", "f1")}
"""`task.metric` -> lm_eval's metric beside acc, and how lm_eval aggregates it"""
VERSION = 1.0
"""of the task's definition; lm_eval shows it beside the scores"""


@dataclass(frozen=True)
class OwnTask:
    """The rows and the settings of a run's task."""

    name: str
    columns: Mapping[str, Sequence[str] | Sequence[int]]
    config: Mapping[str, Any]
    """the keys of lm_eval's task YAML that depend on the kind of answers"""
    logged: float | None
    """global_accuracy after the last round"""
    num_differing: int
    """rows that lm_eval sees with other tokens than the run did; scores may differ there"""

    @property
    def metric(self) -> str:
        """lm_eval's name of the score that the run logs as global_accuracy."""
        return str(self.config["metric_list"][0]["metric"])

    @property
    def num_rows(self) -> int:
        """Number of test rows."""
        return len(self.columns["prompt"])

    def write(self, folder: Path) -> None:
        """Write NAME.parquet and NAME.yaml. folder: `TASKS` in the export's folder."""
        write_table(folder / f"{self.name}.parquet", self.columns)
        source = {
            "task": self.name,
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"test": f"{TASKS}/{self.name}.parquet"}},
            "test_split": "test",
            "num_fewshot": 0,
        }
        write_yaml(folder / f"{self.name}.yaml", {**source, **self.config, "metadata": {"version": VERSION}})


def own_task(record: Record, about: SavedModel, tokenizer: Any) -> OwnTask | None:
    """The task of a run with prompts; None for other kinds.

    about, tokenizer: of the run's model. Raises DataError if the test rows cannot be read any more, or have changed.
    """
    experiment = record.experiment
    data, task = experiment.data, experiment.task.effective(experiment.data)
    rows = task.load(data, experiment.seed, experiment.partition.user_column)
    _, test = at_most(rows, data, experiment.seed)
    questions = task.questions(test)
    if questions is None:
        return None
    encoded: Any = task.encode(test, Encoder("text", tokenizer, about.backbone.encode_mode, data.max_length))
    if not np.array_equal(encoded.tokens, EncodedSet.load(record.folder / "data" / "test").tokens):
        raise DataError(
            f"{record.folder}: the test rows have changed since the run encoded them, so scores could not be compared; "
            "put the files back"
        )
    generating = for_generation(tokenizer, end_id(tokenizer))
    prompts = texts_as_encoded(questions.prompts, encoded, generating)
    if questions.words:
        words = dict(zip(questions.words, about.answers.label_words or (), strict=True))
        columns: dict[str, Any] = {"prompt": prompts, "label": list(questions.labels)}
        config, num_differing = _choice(prompts, words, generating, encoded.prompts(), task.metric)
    else:
        responses, config, num_differing = _generation(prompts, questions, generating, encoded)
        columns = {"prompt": prompts, "response": responses}
    name = "fibec_" + re.sub(r"\W+", "_", task.name.lower())
    logged = read_rounds(record.folder).to_pylist()[-1]["global_accuracy"]
    return OwnTask(name, columns, config, logged, num_differing)


def _generation(
    prompts: Sequence[str], questions: Questions, tokenizer: Any, encoded: EncodedSet
) -> tuple[list[str], dict[str, Any], int]:
    """The responses as the tokenizer decodes them, the YAML's keys, and the number of rows that differ."""
    texts = [text.strip() for text in questions.responses]
    answers = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    asked = tokenizer(prompts, verbose=False)["input_ids"]
    wanted = list(zip(encoded.prompts(), answer_tokens(encoded), strict=True))
    made = [(ids, [*answer, tokenizer.eos_token_id]) for ids, answer in zip(asked, answers, strict=True)]
    config = {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "response",
        "target_delimiter": "",
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": max(map(len, answers)) + 1},
        "metric_list": [_metric("exact_match")],
    }
    responses = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    return responses, config, sum(one != other for one, other in zip(made, wanted, strict=True))


def _choice(
    prompts: Sequence[str], words: Mapping[str, int], tokenizer: Any, tokens: Sequence[list[int]], metric: str
) -> tuple[dict[str, Any], int]:
    """The YAML's keys, and the number of rows that differ. words: with their token ids. metric: the run's."""
    delimiter, num_differing = _delimiter(prompts, words, tokenizer, tokens)
    config = {
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_target": "label",
        "doc_to_choice": list(words),
        "target_delimiter": delimiter,
        "metric_list": [_metric("acc"), *([_metric(*METRICS[metric])] if metric in METRICS else [])],
    }
    return config, num_differing


def _delimiter(
    prompts: Sequence[str], words: Mapping[str, int], tokenizer: Any, tokens: Sequence[list[int]]
) -> tuple[str, int]:
    """What to put between a prompt and a word, and the number of rows where both have other tokens than in the run.

    lm_eval tokenizes prompt and word together, the run each alone.
    """

    def differing(delimiter: str) -> int:
        odd = set()
        for name, word in words.items():
            made = tokenizer([f"{prompt}{delimiter}{name}" for prompt in prompts], verbose=False)["input_ids"]
            odd |= {i for i, (ids, own) in enumerate(zip(made, tokens, strict=True)) if ids != [*own, word]}
        return len(odd)

    counts = {delimiter: differing(delimiter) for delimiter in (" ", "")}
    best = min(counts, key=counts.__getitem__)
    return best, counts[best]


def _metric(name: str, aggregation: str = "mean") -> dict[str, Any]:
    return {"metric": name, "aggregation": aggregation, "higher_is_better": True}
