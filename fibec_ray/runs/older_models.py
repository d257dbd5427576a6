"""Reads what earlier releases wrote into fibec_ray.json."""

from __future__ import annotations

from typing import Any


def of_older_file(raw: dict[str, Any]) -> dict[str, Any]:
    """The content of the file under today's names; a file of this release is returned as it is."""
    if "num_classes" in raw:
        raw = _with_answers(raw)
    return _with_task(raw) if "prompts" in raw else raw


def _with_answers(raw: dict[str, Any]) -> dict[str, Any]:
    """`num_classes` (1 in a regression, 0 for text answers) and `label_words` are now `answers`."""
    count, words = raw["num_classes"], raw.get("label_words")
    answers: dict[str, Any] = {"likelihood": "normal" if count == 1 else "categorical", "num_scores": count}
    if count == 0:
        answers |= {"likelihood": "tokens", "readout": "response"}
    rest = {name: value for name, value in raw.items() if name not in ("num_classes", "label_words")}
    return rest | {"answers": answers | {"label_words": words}}


def _with_task(raw: dict[str, Any]) -> dict[str, Any]:
    """`prompts` is now the whole `task`."""
    prompts, answers = raw["prompts"], raw["answers"]
    task: dict[str, Any] = {"name": prompts["task"]}
    names = raw.get("label_names") or [str(i) for i in range(answers["num_scores"])]
    if answers.get("readout") == "response":
        task |= {"kind": "instructions", "instructions": prompts.get("instructions")}
    elif answers["likelihood"] == "normal":
        task |= {"kind": "regression"}
    elif not prompts.get("text_columns"):
        task |= {"kind": "digits", "label_names": names}
    else:
        settings = ("text_columns", "template", "causal_template")
        task |= {"kind": "text", "label_names": names} | {key: prompts[key] for key in settings if key in prompts}
    rest = {name: value for name, value in raw.items() if name != "prompts"}
    return rest | {"task": task, "max_length": prompts["max_length"]}
