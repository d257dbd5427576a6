"""Sizes of a model, and the memory and operations of its passes, from its architecture alone.

They are measured on the classes that a run uses, with fake tensors, so no formula can be out of date. Shapes: B
samples, S tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.learning.job import Job
from fibec_ray.method import AXES
from fibec_ray.model_types import Batch, BatchForm, LocalModel
from fibec_ray.models.built import ModelRequest, SizedModel
from fibec_ray.models.kinds import parse
from fibec_ray.models.stream import bytes_that_stay
from fibec_ray.parts.part import build
from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.preflight.live import peak_bytes
from fibec_ray.preflight.trial import TrialShard
from fibec_ray.tensors import Tensors, num_bytes
from fibec_ray.types import Layout

MANY = 8
"""Number of blocks from which a pass is measured on a few blocks and extrapolated."""
FEW = 3
"""Blocks to measure, after which every further block adds the same amount."""


@dataclass(frozen=True)
class Anatomy:
    """Sizes of a model and costs of its passes.

    initial: all trainable and server-only tensors, on the meta device. base_bytes: of the frozen base.
    """

    model: SizedModel
    initial: Tensors
    layout: Layout
    trains_base: bool
    frozen_entries: int
    base_bytes: int
    backward_share: float
    """cost of a backward pass, relative to a forward pass"""
    batch: Callable[[int, int], Batch]
    within: Callable[[Callable[[], int]], int]
    forward_flops: Callable[[int, int], float]
    """(B, S) -> flops of one pass without gradients"""
    answer_flops: float = 0.0
    """additional flops per token of a response, in a pass without gradients; 0 unless answers are texts"""
    smaller: tuple[Anatomy, Anatomy] | None = None
    """the same model with FEW and FEW + 1 blocks, which are faster to measure"""
    streamed_bytes: int = 0
    """of the base on a GPU that fetches weights on use: those that always stay, and twice the largest weight"""
    measure_on_gpu: Callable[[], Anatomy] | None = None
    """the same model with the dtypes and kernels of a GPU"""
    _found: dict[tuple[Any, ...], int] = field(default_factory=dict)

    @cached_property
    def on_gpu(self) -> Anatomy:
        """The model as it computes on a GPU. Only its memory differs."""
        return self.measure_on_gpu() if self.measure_on_gpu else self

    @cached_property
    def all_base_bytes(self) -> int:
        """Bytes of the stored base, including the parts that are trained."""
        own = self.initial if self.trains_base else {}
        return self.base_bytes + num_bytes(own)

    @cached_property
    def trainable_bytes(self) -> int:
        """Bytes of the tensors that devices train."""
        return num_bytes({name: value for name, value in self.initial.items() if name not in self.layout.server_only})

    def step_bytes(self, num_samples: int, length: int, single: Collection[str] = ()) -> int:
        """Peak bytes of a training step: activations, and per-sample gradients of the tensors in `single`.

        Raises ModelError if per-sample gradients are not available.
        """

        if self.smaller:
            return self._by_blocks(lambda few: few.step_bytes(num_samples, length, few.having(single)))

        def step() -> None:
            self.model.train(True)
            out, caught = self.model.per_sample_grads(self.batch(num_samples, length), single)
            params = list(self.model.trainable.values())
            grads = self.model.grad(out.losses.mean(), [*params, *caught.tensors])
            caught.squares(grads[len(params) :])

        return self._peak(("step", num_samples, length, frozenset(single)), step)

    def forward_bytes(self, num_samples: int, length: int) -> int:
        """Peak bytes of a pass without gradients."""
        if self.smaller:
            return self._by_blocks(lambda few: few.forward_bytes(num_samples, length))

        def forward() -> None:
            self.model.train(False)
            with torch.no_grad():
                self.model.forward(self.batch(num_samples, length))

        return self._peak(("forward", num_samples, length), forward)

    def score_bytes(self, sharing: Sharing, num_samples: int, length: int) -> int:
        """Peak bytes while a device scores the blocks.

        Raises ModelError if that depends on values.
        """
        if self.smaller:
            return self._by_blocks(lambda few: few.score_bytes(sharing, num_samples, length))

        def score() -> None:
            self.model.train(False)
            alike = TrialShard(self.batch, torch.full((num_samples,), length), length)
            sharing.score(self.model, alike, torch.Generator())

        return self._peak(("score", num_samples, length, sharing.model_dump_json()), score)

    def having(self, names: Collection[str]) -> list[str]:
        """Those of the names that the model has."""
        return [name for name in self.model.trainable if name in names]

    def _by_blocks(self, bytes_of: Callable[[Anatomy], int]) -> int:
        """Extrapolate: every block after the first few adds the same amount."""
        assert self.smaller is not None
        few, one_more = map(bytes_of, self.smaller)
        return few + (self.layout.num_layers - FEW) * (one_more - few)

    def _peak(self, key: tuple[Any, ...], work: Callable[[], None]) -> int:
        if key not in self._found:
            self._found[key] = self.within(lambda: peak_bytes(work, self._tensors()))
        return self._found[key]

    def _tensors(self) -> list[Tensor]:
        module = self.model.module
        return [*module.parameters(), *module.buffers(), *self.model.trainable.values()]


def anatomy(job: Job, form: BatchForm) -> Anatomy:
    """Measure the model of a job. form: of its batches. Raises ModelError if the backbone cannot be built."""
    # As JSON, because a mapping in the backbone's settings is not hashable.
    return _measured(job.backbone.model_dump_json(), job.method.peft.model_dump_json(), job.answers, form)


@lru_cache(maxsize=24)
def _measured(
    spec: str,
    peft: str,
    answers: Answers,
    form: BatchForm,
    num_blocks: int | None = None,
    computes_on: Literal["cpu", "cuda"] = "cpu",
) -> Anatomy:
    backbone, part = parse(json.loads(spec)), build(AXES["peft"], json.loads(peft))
    request = ModelRequest(part, answers, shape=form.shape, computes_on=computes_on)
    outline = backbone.outline(request, form, num_blocks)
    many = num_blocks is None and outline.blocks_are_alike and outline.num_layers > MANY
    counts = (FEW, FEW + 1) if many else ()
    few = [_measured(spec, peft, answers, form, count, computes_on) for count in counts]
    frozen = [value for value in outline.frozen().values() if id(value) not in map(id, outline.server_only_values)]
    initial = {name: value.detach().to("meta") for name, value in outline.trainable.items()}
    initial |= {name: value.detach().to("meta") for name, value in outline.server_only_values.items()}
    return Anatomy(
        outline,
        initial,
        _layout(outline, initial),
        outline.backward_share > 1,
        sum(value.numel() for value in frozen),
        sum(value.numel() * value.element_size() for value in frozen),
        outline.backward_share,
        outline.batch,
        outline.within,
        outline.pass_flops,
        outline.answer_flops,
        (few[0], few[1]) if few else None,
        bytes_that_stay(outline.module) + 2 * max((value.nbytes for value in frozen), default=0),
        partial(_measured, spec, peft, answers, form, num_blocks, "cuda") if computes_on == "cpu" else None,
    )


def _layout(model: LocalModel, initial: Tensors) -> Layout:
    layers = {name: model.layer_of(name) for name in initial}
    return Layout(layers, model.num_layers, model.adapter_config, frozenset(model.server_only))
