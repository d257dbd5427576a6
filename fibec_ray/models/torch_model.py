"""The model that devices train: frozen base, PEFT adapter, and a head for scores.

`inputs.py` makes the base's arguments, `readouts.py` reads scores off its states. Shapes: B samples, S tokens, H hidden
size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fibec_ray import seeds
from fibec_ray.answers import Answers
from fibec_ray.blocks import num_blocks
from fibec_ray.curvature.per_sample import Caught, catch
from fibec_ray.curvature.sample_formulas import collect_holders
from fibec_ray.heads import beside_the_body, head_modules, in_head
from fibec_ray.model_types import HEAD, Batch, LaneBatch, Outputs, Work
from fibec_ray.models.alone import Alone
from fibec_ray.models.backends import choose, hold, room_on, weights_bytes
from fibec_ray.models.base_cache import head_of
from fibec_ray.models.base_weights import BaseWeights
from fibec_ray.models.blocks import BlockOutputs, keep_recomputing, recompute_blocks
from fibec_ray.models.forward_cost import ForwardCost
from fibec_ray.models.inputs import Size, inputs_of
from fibec_ray.models.joined import join, join_embeds, split
from fibec_ray.models.kernels import keep_heap, speed_up
from fibec_ray.models.lane_bank import LaneBank, obstacle
from fibec_ray.models.masks import Masks
from fibec_ray.models.process_state import allow_tf32
from fibec_ray.models.readout import Run, no_cache, own
from fibec_ray.models.readouts import own_head, readout_of
from fibec_ray.models.settings import BackendChoice, PretrainedSettings
from fibec_ray.parts.peft.base import Peft
from fibec_ray.types import Products

TASK_TYPES: dict[str, str] = {"causal_lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
"""PEFT's word for models that answer in text, by head."""


@dataclass(frozen=True)
class ModelSpec:
    """A backbone and its trainable part."""

    backbone: PretrainedSettings
    peft: Peft
    answers: Answers
    seed: int = 0
    """of the adapter's and head's initial values, which are the same in every process"""
    shape: tuple[int, ...] = ()
    """of an image, (3, H, W); () for texts"""
    products: Products | Literal["auto"] = "auto"
    """how frozen layers multiply on a CPU; auto: this processor's default"""
    computes_on: Literal["cpu", "cuda"] = "cpu"
    """device type of an outline, which computes nothing"""


class TorchModel(Alone):
    """One frozen base with one adapter, used by one device at a time. Implements `LocalModel`.

    source: the folder from `backbone.prepare`, or the base itself. device: torch's, such as "cpu" or "cuda:0". beside:
    planned GPU memory beside the base, in bytes; None: not planned.

    Virtual tokens of a PEFT kind are removed from outputs: states are (B, S, H).
    """

    @property
    def computes_on(self) -> str:
        """Type of device that dtypes and kernels are chosen for."""
        return self.device.type

    def __init__(self, what: ModelSpec, source: Any, device: str = "cpu", beside: int | None = None):
        keep_heap()
        spec, peft = what.backbone, what.peft
        self.device = torch.device(device)
        if isinstance(source, Path):
            self.backend_choice = choose(spec.backend, weights_bytes(source), room_on(self.device, beside))
            self._base_weights = hold(self.backend_choice.backend, spec, source, self.device, beside, what.products)
        else:
            self.backend_choice = BackendChoice("plain", "as given")
            self._base_weights = BaseWeights(source, partial(speed_up, device=self.device, products=what.products))
        base = self._base_weights.base
        if spec.checkpointing:
            recompute_blocks(base, self._lanes_as_now)
        self.num_layers = num_blocks(base.config)
        self.work = Work()
        self._spec, self._peft = spec, peft
        self._cost, num_features = self._measure(base)
        self._head_modules = _head_modules(spec, source, base)
        with seeds.seeded_third_party(what.seed, "adapter"):
            self._attached = peft.attach(base, self._head_modules)
            head = own_head(spec.head, what.answers, num_features)
        if spec.narrows_adapters(self.computes_on) and peft.computes_in_base_dtype:
            peft.keep_dtype(self._attached.module)
        if self.device.type == "cuda":
            allow_tf32(spec.tf32)
        self._base_weights.finish(self._attached.module)
        self.peft_model = self._attached.module.to(self.device)
        self._base = self._attached.base
        self._blocks = BlockOutputs(self._base, self._attached.num_prompts)
        self._inputs = inputs_of(self._base)
        self._masks = Masks(self._base, self.device, needed=self._attached.num_prefixes > 0)
        self._readout = readout_of(self._base, what.answers, None if head is None else head.to(self.device))
        self.trainable = self._collect()
        self._bank: LaneBank | None = None
        self._rank: int | None = None
        self._mode: bool | None = None
        self.server_only_values = self._collect_server_only()
        self.holders = collect_holders(self.peft_model, self._attached.name_of)
        if self.head is not None:
            self.holders[HEAD] = self.head

    def _measure(self, base: Any) -> tuple[ForwardCost, int]:
        """The cost of a forward pass, and H of the last hidden state."""
        return ForwardCost.of(base, self.num_layers), base.config.hidden_size

    @property
    def module(self) -> nn.Module:
        """The base with the PEFT kind in it: a PeftModel, or a transformers model."""
        module: nn.Module = self.peft_model
        return module

    @property
    def attached(self) -> Any:
        """The base with the PEFT kind in it, without our own head."""
        return self._attached

    @property
    def base(self) -> Any:
        """The transformers model that the PEFT kind is attached to."""
        return self._base

    @property
    def head(self) -> nn.Module | None:
        """Our own classifier on the mean of the last states; None for other heads."""
        return self._readout.head

    @property
    def adapter_config(self) -> dict[str, Any]:
        """The content of the saved adapter_config.json; the base's own config.json if the base is trained."""
        if self._peft.trains_base:
            return dict(self._attached.config)
        base = self._spec.name if self._spec.init == "pretrained" else None
        return {**self._attached.config, **self._auto_classes(), "base_model_name_or_path": base}

    def _auto_classes(self) -> dict[str, Any]:
        """What lets PEFT's AutoPeftModel classes find the class of the base."""
        config, base = self._attached.config, type(self._base)
        if "peft_type" not in config or config.get("task_type") is not None:
            return {}
        if (task_type := TASK_TYPES.get(self._spec.head)) is not None:
            return {"task_type": task_type}
        return {"auto_mapping": {"base_model_class": base.__name__, "parent_library": base.__module__}}

    def layer_of(self, name: str) -> int | None:
        return self._peft.layer_of(name)

    def is_adapter(self, name: str) -> bool:
        return self._peft.is_adapter(name) and not in_head(name, self._head_modules)

    def set_rank(self, rank: int | None) -> None:
        if rank != self._rank and (ranks := self._peft.device_ranks) is not None:  # walks through all modules
            ranks.set(self.peft_model, rank)
        self._rank = rank

    def train(self, mode: bool) -> None:
        if mode == self._mode:
            return
        first, self._mode = self._mode is None, mode
        if first or self._spec.dropout or self._spec.checkpointing:  # otherwise the base stays in evaluation mode
            self.peft_model.train(mode and self._spec.dropout)
        for module in self._adapter_modules:
            module.train(mode)
        if self._spec.checkpointing:
            keep_recomputing(self.peft_model)

    @cached_property
    def _adapter_modules(self) -> list[nn.Module]:
        """The adapter's outermost modules. None where the base itself is trained."""
        found: dict[str, nn.Module] = {}
        for name, module in self.peft_model.named_modules():
            inside = any(name.startswith(f"{outer}.") for outer in found)
            if self.is_adapter(name) and not self._peft.trains_base and not inside:
                found[name] = module
        return list(found.values())

    def embed(self, batch: Batch) -> Tensor:
        return self._inputs.embed(batch, self.device)

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        self.work.add(self.cost(batch, torch.is_grad_enabled()))
        return self._outputs(batch, embeds, hidden)

    def _outputs(self, batch: Batch, embeds: Tensor | None, hidden: bool) -> Outputs:
        run = self._run(batch, embeds, hidden)
        found = self._readout.read(run, batch)
        if torch.is_grad_enabled():
            self._base_weights.after_forward()
        states = run.states.by_sample(batch.num_samples)
        return Outputs(found.losses, found.scores, states.blocks, found.likelihood, states.last)

    def _run(self, batch: Batch, embeds: Tensor | None, hidden: bool) -> Run:
        """A pass that has not started yet."""
        given = self._attached.extend(self._inputs.arguments(batch, embeds, self.device))
        arguments = self._masks.without_idle(given, batch.padded)
        length = self._inputs.size(batch).length
        reference = partial(self._reference, batch, length)
        return Run(self._base, self._blocks, arguments, length, hidden, reference, self._masks)

    @contextmanager
    def _reference(self, batch: Batch, length: int) -> Iterator[Run]:
        """A pass of the frozen base alone, without a graph and in evaluation mode."""
        mode, drops = self._mode, self._spec.dropout and self._mode
        if drops:
            self.train(False)
        arguments = self._masks.without_idle(self._inputs.arguments(batch, None, self.device), batch.padded)
        with torch.no_grad(), self._attached.switched_off():
            yield Run(self._base, self._blocks, arguments, length, False, masks=self._masks)
        if drops:
            self.train(bool(mode))

    @torch.no_grad()
    def next_scores(self, prompts: Tensor, written: Tensor) -> Tensor:
        """(B, V) scores of the token that follows B prompts of the same length (B, S), and what is written (B, T)."""
        ids = torch.cat([prompts, written], dim=1).to(self.device)
        length = ids.shape[1]
        inputs = self._attached.extend({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        with self._masks.answered():
            out = self._base(**self._masks.without_idle(inputs, ()), **no_cache(self._base))
        return own(out.logits, length)[:, -1].float()

    def derive(
        self, values: Sequence[Tensor], tensors: Sequence[Tensor], cotangents: Any, retain_graph: bool
    ) -> Sequence[Tensor | None]:
        self._base_weights.before_backward()
        return super().derive(values, tensors, cotangents, retain_graph)

    @property
    def gains_from_lanes(self) -> bool:
        """False for a float32 base on a CPU, where lanes are not faster; the same settings then give the same bits.

        `fibec_ray.bench.speed --only ours-fp32-1,ours-fp32-5` compares both.
        """
        return self.device.type != "cpu" or self._spec.dtype != "float32"

    def obstacle_to_lanes(self) -> str | None:
        if not self._peft.side_by_side:
            return f"method.peft {self._peft.kind} is computed for one device at a time"
        if self._spec.dropout or any(self._drops_out(name, module) for name, module in self.peft_model.named_modules()):
            return "dropout must be drawn for each device separately"
        return obstacle(self.holders, self.trainable)

    def together(
        self, lanes: Sequence[LaneBatch], names: Collection[str] = (), hidden: bool = False
    ) -> tuple[list[Outputs], Caught]:
        rows = [lane.batch.num_samples for lane in lanes]
        batch = join([lane.batch for lane in lanes], self._inputs.pad_id)
        embeds = join_embeds([lane.embeds for lane in lanes], batch.rows_each)
        watching = catch(self.holders, names, batch.num_samples, batch.rows_each)
        with self._installed_bank.using([lane.values for lane in lanes], rows), watching as caught:
            out = self._outputs(batch, embeds, hidden)
        return split(out, [lane.batch for lane in lanes]), caught

    def joined(self, batches: Sequence[Batch]) -> Batch:
        return join(batches, self._inputs.pad_id)

    def stacked(
        self, values: Mapping[str, Tensor], batch: Batch, names: Collection[str] = (), hidden: bool = False
    ) -> tuple[Outputs, Caught]:
        watching = catch(self.holders, names, batch.num_samples, batch.rows_each)
        with self._installed_bank.using_stack(values), watching as caught:
            return self._outputs(batch, None, hidden), caught

    @property
    def _installed_bank(self) -> LaneBank:
        if self._bank is None:
            self._bank = LaneBank(self.holders, self.trainable)
        return self._bank

    def _lanes_as_now(self) -> AbstractContextManager[None]:
        return nullcontext() if self._bank is None else self._bank.as_now()

    def cost(self, batch: Batch, graph: bool) -> Work:
        """Work of one pass. A backward pass costs as much as the forward pass, or twice as much if the base is trained.

        Frozen weights need no weight gradients, and the adapter's are negligible.
        """
        size = self._inputs.size(batch)
        num_tokens = size.rows * (size.length + size.target + self._attached.num_prompts)
        flops = self._flops_of(size) + self._cost.head * self._readout.num_predicted(batch)
        backward = (2 if self._peft.trains_base else 1) * flops if graph else 0.0
        return Work(self._readout.num_forwards * flops + backward, num_tokens, backward)

    def _flops_of(self, size: Size) -> float:
        """Flops of a forward pass without a language-model head."""
        run = size.length + self._attached.num_prompts
        return size.rows * run * self._cost.flops_per_token(run + self._attached.num_prefixes)

    def _drops_out(self, name: str, module: nn.Module) -> bool:
        return self.is_adapter(name) and isinstance(module, nn.Dropout) and module.p > 0

    def _collect(self) -> dict[str, nn.Parameter]:
        name_of = self._attached.name_of
        found = {name_of(name): p for name, p in self.peft_model.named_parameters() if p.requires_grad}
        if self.head is not None:
            found |= {f"{HEAD}.{name}": p for name, p in self.head.named_parameters()}
        return found

    def _collect_server_only(self) -> dict[str, nn.Parameter]:
        named = ((self._attached.name_of(name), p) for name, p in self.peft_model.named_parameters())
        return {name: p for name, p in named if name in self._attached.server_only}


def _head_modules(spec: PretrainedSettings, source: Any, base: Any) -> list[str] | None:
    """Paths of the modules of the architecture's own head; None: no head, or not trained."""
    if spec.head != "model":
        return None
    return head_of(source) if isinstance(source, Path) else head_modules(base, beside_the_body(base))
