"""A trained model that is ready to predict; `fibec_ray.load` returns one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fibec_ray.data.encode_instructions import end_id
from fibec_ray.errors import DataError, ModelError
from fibec_ray.learning.evaluation import evaluation_chunks
from fibec_ray.model_types import Shard
from fibec_ray.models.base import AnyBackbone
from fibec_ray.models.built import BuiltModel
from fibec_ray.runs.saved_model import SavedModel
from fibec_ray.tasks.prediction import Prediction
from fibec_ray.tensors import joined

MOST_NEW_TOKENS = 64
Inputs = Sequence[Any]
"""Texts, pairs of texts, or numbers of one sample's shape each."""


class TrainedModel:
    """A run's model on one torch device.

        model = fibec_ray.load("runs/quickstart")
        model.predict(["What is the capital of Peru?"])[0].label

    Predictions are those of the run's evaluation: same tokens, same batches, same weights.
    """

    def __init__(self, about: SavedModel, engine: BuiltModel, tokenizer: Any = None):
        self.about = about
        """what was trained: backbone, method, classes, versions"""
        self.tokenizer = tokenizer
        """of transformers, or its image processor; None for networks from scratch"""
        self.engine = engine
        """our model around the torch module: losses, scores, names of tensors"""
        engine.train(False)
        self._takes_types = _type_check(about.backbone)

    @property
    def model(self) -> nn.Module:
        """The torch module: a PeftModel, a transformers model with an adapter in it, or a small network.

        With a mean-pool head it is the encoder; `head` is the classifier on top.
        """
        return self.engine.module

    @property
    def head(self) -> nn.Module | None:
        """The linear classifier on the mean of the last hidden states; None for other heads."""
        return self.engine.head

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in the order of their ids; numbers as text where the run has no names."""
        return self.about.label_names or tuple(str(i) for i in range(self.about.answers.num_scores))

    def predict(
        self, inputs: Inputs, batch_size: int | None = None, max_new_tokens: int = MOST_NEW_TOKENS
    ) -> list[Prediction]:
        """One prediction for each input, in order.

        inputs: texts; pairs of texts, for tasks on pairs; instructions, or pairs (instruction, input); images as paths,
        Pillow images or arrays; an array (N, *shape) for networks on numbers, but coordinates (N, 1) for the task
        fisher-kpp. batch_size: None: as in the run's evaluation. max_new_tokens: of an answer in text. Raises DataError
        for inputs that do not fit.
        """
        inputs = _several(inputs)
        if not len(inputs):
            return []
        task = self.about.task
        if task.writes_text:
            return [Prediction(text=text) for text in self._answers(inputs, batch_size, max_new_tokens)]
        return task.predictions(self.scores(inputs, batch_size))

    @torch.no_grad()
    def scores(self, inputs: Inputs, batch_size: int | None = None) -> Tensor:
        """(N, C) logits of the classes, float32 on the CPU; (N, 1) values in a regression; (N, T, C) for the tags of T
        words, NaN where an input has fewer words.
        """
        if self.about.task.writes_text:
            raise ModelError("this model answers in text and has no class scores; use predict")
        shard = self._shard(_several(inputs))
        chunks = evaluation_chunks(shard, batch_size or self.about.batch_size)
        outs = [self.engine.forward(shard.batch(rows)) for rows in chunks]
        found = joined([out.likelihood.by_sample(out.scores).float().cpu() for out in outs], math.nan)
        return found[torch.argsort(torch.cat(chunks))]

    def _encoded(self, inputs: Inputs) -> Any:
        """The inputs as the run encoded its test set, with made-up labels. Raises DataError."""
        about = self.about
        shape = tuple(self.engine.adapter_config.get("input_shape", ()))
        encoder = about.backbone.encoder_with(self.tokenizer, about.max_length)
        return about.task.encode(about.task.rows_to_predict(inputs, shape), encoder)

    def _shard(self, inputs: Inputs) -> Shard:
        made = self._encoded(inputs)
        types = getattr(made, "types", None)
        if types is not None and not self._takes_types(int(types.max(initial=0))):
            made = replace(made, types=None)
        shard: Shard = made.shard(np.arange(made.num_samples))
        return shard

    def _answers(self, inputs: Inputs, batch_size: int | None, most: int) -> list[str]:
        """Greedy decoding of each prompt."""
        asked = self._encoded(inputs).prompts()
        texts = [""] * len(asked)
        for rows in _of_one_length(asked, batch_size or self.about.batch_size):
            answers = _decode(self.engine, [asked[row] for row in rows], end_id(self.tokenizer), most)
            for row, ids in zip(rows, answers, strict=True):
                texts[row] = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return texts

    def __repr__(self) -> str:
        about = self.about
        who = "" if about.device is None else f", device={about.device}"
        return f"TrainedModel({about.name!r}, method={about.method!r}, task={about.task.name!r}{who})"


def _several(inputs: Any) -> Inputs:
    """The inputs; a text or a path alone is one input. Raises DataError for what has no length."""
    if isinstance(inputs, str | PurePath):
        return [inputs]
    if not isinstance(inputs, Sized):
        raise DataError(f"inputs: give a list or an array with one entry per sample; this is {inputs!r:.60}")
    found: Any = inputs
    return found


def _type_check(backbone: AnyBackbone) -> Callable[[int], bool]:
    """Whether the model's scores depend on token types up to a number. Asked now: the base's folder may move later."""

    @cache
    def takes(highest: int) -> bool:
        return backbone.takes_types(highest)

    with suppress(ModelError):  # a model that knows one type has no pairs
        takes(0), takes(1)
    return takes


def _of_one_length(asked: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Rows in batches of prompts of equal length, which need no padding."""
    by_length: dict[int, list[int]] = {}
    for row, ids in enumerate(asked):
        by_length.setdefault(len(ids), []).append(row)
    for rows in by_length.values():
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


def _decode(engine: Any, prompts: Sequence[Sequence[int]], end: int, most: int) -> list[list[int]]:
    """Token ids of the answers, without the token that ends them.

    The whole sequence is computed again for each token: that is exact for every PEFT kind, and answers are short.
    """
    asked = torch.tensor(prompts)
    written, done = asked[:, :0], torch.zeros(len(asked), dtype=torch.bool)
    for _ in range(most):
        chosen = engine.next_scores(asked, written).argmax(1).cpu()
        done |= chosen == end
        written = torch.cat([written, chosen.unsqueeze(1)], dim=1)
        if done.all():
            break
    return [row[: row.index(end)] if end in row else row for row in written.tolist()]
