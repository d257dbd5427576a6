"""The transformer blocks of a base: their outputs, and gradient checkpointing.

transformers' `hidden_states` are the inputs of the next block, and the last one includes a decoder's final norm. Ours
are the blocks' own outputs.

Shapes: B samples, S tokens of the sample's own, m virtual tokens before them, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor, nn

from fibec_ray.blocks import find_blocks, num_blocks
from fibec_ray.errors import ModelError

TIME_FIRST = ("xlnet",)
"""Families whose blocks work on states (S, B, H)."""
NO_MODULES = ("xlm", "flaubert")
"""Families without a module per block. They have no final norm, so `hidden_states` are the blocks' outputs."""


class Hidden(NamedTuple):
    """States of the samples' own tokens, (B, S, H) each."""

    blocks: tuple[Tensor, ...] = ()
    """output of each block"""
    last: Tensor | None = None
    """input of a head: the last block's output, after the final norm if there is one"""

    def by_sample(self, num_samples: int) -> Hidden:
        """(k B, S, H) -> (B, k S, H): the k rows of each sample as one. num_samples: B."""

        def joined(states: Tensor) -> Tensor:
            return states if len(states) == num_samples else states.reshape(num_samples, -1, states.shape[-1])

        return Hidden(tuple(map(joined, self.blocks)), None if self.last is None else joined(self.last))


class BlockOutputs:
    """Runs a base and collects its blocks' outputs. base: a transformers model. num_virtual: m in the outputs."""

    def __init__(self, base: Any, num_virtual: int):
        self._count, self._num_virtual = num_blocks(base.config), num_virtual
        self._blocks = find_blocks(base)
        self._kind = base.config.model_type

    def run(self, module: nn.Module, inputs: Mapping[str, Any], length: int, wanted: bool) -> tuple[Any, Hidden]:
        """Run the base or its body; return its output, and the blocks' outputs if `wanted`.

        length: S. The blocks of some families see more tokens, padded. Raises ModelError if outputs are wanted of an
        architecture that does not keep its blocks in a list.
        """
        if wanted and not self._blocks and self._kind not in NO_MODULES:
            raise ModelError(
                f"backbone: {self._kind} does not keep its blocks in a list, so their outputs are unknown; choose "
                "another backbone, or a method that does not read them, such as fedavg"
            )
        with self.caught(wanted) as found:
            out = module(**inputs, output_hidden_states=wanted)
        if not wanted:
            return out, Hidden()
        states = found if len(found) == self._count else out.hidden_states[1:]
        end = self._num_virtual + length
        own = tuple(each[:, self._num_virtual : end] for each in states)
        return out, Hidden(own, out.hidden_states[-1][:, -length:])

    @contextmanager
    def caught(self, wanted: bool) -> Iterator[list[Tensor]]:
        """A list to which each block adds its states when it runs. Removed before blocks are recomputed for
        gradients.
        """
        found: list[Tensor] = []

        def keep(block: nn.Module, args: Any, out: Any) -> None:
            states: Tensor = out[0] if isinstance(out, tuple | list) else out
            found.append(states.transpose(0, 1) if self._kind in TIME_FIRST else states)

        handles = [block.register_forward_hook(keep) for block in self._blocks if wanted]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def recompute_blocks(base: Any, as_now: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
    """Turn on gradient checkpointing: blocks keep only their inputs and are recomputed in the backward pass.

    as_now: called when a block runs; the block is recomputed within the context that it returns. transformers
    recomputes only blocks in training mode, which also turns on dropout; here it is always on (`keep_recomputing`).
    Raises ModelError for an architecture that does not support it.
    """
    # Earlier releases of transformers 5 have only the second name.
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), as_now())})
    except ValueError as error:
        raise ModelError(f"backbone.checkpointing: {error}; set it to false") from error
    if hasattr(base.config, "use_cache"):
        base.config.use_cache = False


def keep_recomputing(module: nn.Module) -> None:
    """Keep recomputing after a change of mode: sets the blocks' own flag, not that of their dropout."""
    for block in module.modules():
        if getattr(block, "gradient_checkpointing", False):
            block.training = True
