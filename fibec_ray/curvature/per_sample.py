"""Exact gradients of each sample of a batch, from one forward and backward pass.

L is the *sum* of the per-sample losses and no layer mixes samples, so e_it = dL/dy_it, the gradient of a module's
output at token t of sample i, belongs to sample i alone. The gradient of one sample is then a sum over its tokens of
products of e_it with what the module saw:

    Linear      y = W a + b         weight: G_i = sum_t e_it a_it^T   bias: sum_t e_it
    Conv2d      the same, t the places of the image and a_it the patch below place t, as one vector
    Conv1D      y = W^T a + b       weight: sum_t a_it e_it^T         bias: sum_t e_it  (GPT-2's)
    LayerNorm   y = w * n(a) + b    weight: sum_t e_it * n(a_it)      bias: sum_t e_it  (n: to mean 0 and variance 1)
    Embedding   y = table[a]        weight: row v is the sum of e_it over tokens with a_it = v
    (IA)^3      y = l * (W a + b)   ia3_l: sum_t e_it * (W a_it + b)
    (IA)^3      y = W (l * a) + b   ia3_l: sum_t a_it * dL/d(l * a)_it  (feed-forward)
    its own     y = f(a; w)         weight: the module's own `sample_gradients(a, e)`, which is (B, *shape)
    any other   y = ... + b                                           bias: sum_t e_it

PEFT multiplies by its scaling after lora_B, so treating lora_A and lora_B as plain Linears already includes the
scaling. Hooks record both factors in one pass over the batch, without a loop over samples. Two conditions must hold.
Weights are used only by calls of their module (not so in merged adapters, compiled or checkpointed modules). An encoder
of prompts is called with a row of indices per sample, as PEFT does for prefixes (it computes prompts only once for
all).

With k rows per sample, such as two responses to a prompt, modules see k B rows, those of a sample one after the other.
The rows of a sample then count as one, with k T tokens.

Window attention (Swin) calls its Linears with rows of windows, each sample's windows one after the other. Its modules
are marked as `by_window`; the windows of a sample then count as its tokens.

Shapes: B samples, T tokens (all axes between the first and the last), `in`/`out` features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from fibec_ray.errors import ModelError
from fibec_ray.tensors import Tensors

Formula = Callable[[Any, Tensor, Tensor], Tensor]
"""(module, a (B, T, in), e (B, T, out)) -> gradient of each sample (B, *shape), float32; indices a: (B, T) int64"""


def _table(module: Any, a: Tensor, e: Tensor) -> Tensor:
    # A product, because scatter_add_ on a GPU is not deterministic; prompt tables are small.
    chosen = F.one_hot(a, module.num_embeddings).to(e.dtype)  # (B, T, rows)
    return torch.bmm(chosen.mT, e)


def _bias(module: Any, a: Tensor, e: Tensor) -> Tensor:
    return e.sum(1)


WINDOWS = "by_window"
"""Attribute of modules with the rows of several windows of each sample on axis 0, sample by sample."""


def mark_windows(module: nn.Module) -> None:
    """Mark all modules at or below `module` as called with rows of windows."""
    for child in module.modules():
        setattr(child, WINDOWS, True)


FORMULAS: dict[str, dict[str, Formula]] = {
    "Linear": {"weight": lambda _, a, e: torch.bmm(e.mT, a), "bias": _bias},
    "Conv2d": {"weight": lambda m, a, e: torch.bmm(e.mT, a).view(len(a), *m.weight.shape), "bias": _bias},
    "Conv1D": {"weight": lambda _, a, e: torch.bmm(a.mT, e), "bias": _bias},
    "LayerNorm": {"weight": lambda m, a, e: (e * F.layer_norm(a, m.normalized_shape, eps=m.eps)).sum(1), "bias": _bias},
    "Embedding": {"weight": _table},
    "(IA)^3": {"ia3_l": lambda m, a, e: (e * a).sum(1).view(-1, *_tensor(m, "ia3_l").shape)},
    "its own": {"weight": lambda m, a, e: m.sample_gradients(a, e)},
    "other": {"bias": _bias},
}
"""By the kind of module and the last part of the tensor's name."""


def _kind(module: Any) -> str:
    """The module's key in FORMULAS. A subclass counts as its parent only if it inherits `forward`."""
    forward = getattr(type(module), "forward", None)
    if forward is nn.Linear.forward:
        return "Linear"
    if forward is nn.Conv2d.forward and module.groups == 1 and module.padding_mode == "zeros":
        return "other" if isinstance(module.padding, str) else "Conv2d"  # padding may be a word such as "same"
    if forward is nn.LayerNorm.forward and len(module.normalized_shape) == 1:
        return "LayerNorm"
    if forward is nn.Embedding.forward and module.padding_idx is None and not module.scale_grad_by_freq:
        return "Embedding"
    if type(module).__name__ == "Conv1D":
        return "Conv1D"
    if hasattr(module, "sample_gradients"):
        return "its own"
    if len(getattr(module, "ia3_l", ())) == 1 and next(iter(module.ia3_l.values())).dim() == 2:  # not a convolution's
        return "(IA)^3"
    return "other"


def collect_holders(module: nn.Module, saved_name: Callable[[str], str]) -> dict[str, nn.Module]:
    """The modules at or below `module` with trainable tensors, by the common prefix of their saved names.

    saved_name: a parameter's name in `module` -> its name in a saved adapter, without the adapter's own name
    ("q.ia3_l.default" -> "q.ia3_l"). All kinds of modules are included; `catch` rejects unknown ones.
    """
    known = [part for part in module.modules() if _kind(part) != "other"]
    owners = {(leaf, id(p)): part for part in known for leaf, p in part.named_parameters(recurse=False)}
    holders: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        trainable = [(leaf, p) for leaf, p in part.named_parameters(recurse=False) if p.requires_grad]
        if not trainable:
            continue
        if isinstance(part, nn.ParameterDict) and name.endswith(".ia3_l"):
            part = module.get_submodule(name.rpartition(".")[0])
        elif len(trainable) == 1 and _kind(part) == "other":
            # BERT's language-model head has a second name for the bias of its Linear.
            part = owners.get((trainable[0][0], id(trainable[0][1])), part)
        holders[saved_name(f"{name}.{trainable[0][0]}").rpartition(".")[0]] = part
    return holders


@dataclass(frozen=True)
class Part:
    """Consecutive samples of a batch, which may be padded beyond their own length."""

    rows: slice
    length: int
    """tokens in a row of these samples"""
    padded: int
    """tokens in a row of the batch"""
    total: int
    """N, samples in the batch"""
    num_rows: int = 1
    """k, rows per sample"""

    def of(self, value: Tensor) -> Tensor:
        """These samples' part of a value (N, ...), per token (k N, padded, features), or of N * windows rows."""
        each = len(value) // self.total
        own = value[self.rows.start * each : self.rows.stop * each]
        by_token = value.dim() == 3 and value.shape[1] == self.padded and each == self.num_rows
        return own[:, : self.length] if by_token else own


@contextmanager
def catch(
    holders: Mapping[str, nn.Module], names: Collection[str], num_samples: int, num_rows: int = 1
) -> Iterator[Caught]:
    """Record what the holders of the named tensors see during one forward pass over `num_samples` samples.

    num_rows: k, rows per sample.
    holders: modules by the common prefix of their tensors' names: "x" holds "x.weight" and "x.bias"; an (IA)^3 layer
    "x" holds "x.ia3_l". Raises ModelError for a tensor without a known per-sample gradient.
    """
    found = _formulas(holders, names) if names else {}
    caught = Caught({prefix: Seen(prefix, holders[prefix], found[prefix], num_samples, num_rows) for prefix in found})
    with ExitStack() as hooks:
        for seen in caught.modules.values():
            for handle in seen.watch():
                hooks.callback(handle.remove)
        yield caught


@dataclass(frozen=True)
class Caught:
    """What the holders saw of one batch; gives each sample's gradients once the outputs' gradients are known.

    After the forward pass call `torch.autograd.grad(losses.sum(), caught.tensors, allow_unused=True)`, any number of
    times while the graph is kept.
    """

    modules: Mapping[str, Seen]
    """by prefix, in the order of the holders"""

    @property
    def inputs(self) -> Tensors:
        """a by prefix, (k B, T, in), (B, in) or indices (k B, T); without modules not called, or with only a bias."""
        return {prefix: seen.inputs for prefix, seen in self.modules.items() if seen.inputs is not None}

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors whose gradients are needed, in the order of the holders; none for a module that was not
        called.
        """
        for seen in self.modules.values():
            seen.refuse_changes()
        return [seen.output for seen in self.modules.values() if seen.output is not None]

    def squares(self, grads: Sequence[Tensor | None], scale: float = 1.0) -> Tensors:
        """The squared entries of `gradients`."""
        return {name: value.square_() for name, value in self.gradients(grads, scale).items()}

    @torch.no_grad()
    def sums_of_squares(self, grads: Sequence[Tensor | None], num_parts: int) -> Tensors:
        """{name: (D, *shape)}: the squared entries of `gradients`, summed over the samples of each of D equal parts.

        One module at a time, so that the gradients of all samples of all modules are never in memory together.
        """
        given, sums = self.by_prefix(grads), Tensors()
        for prefix, seen in self.modules.items():
            for name, value in seen.gradients(given[prefix], 1.0).items():
                sums[name] = value.square_().unflatten(0, (num_parts, -1)).sum(1)
        return sums

    @torch.no_grad()
    def gradients(self, grads: Sequence[Tensor | None], scale: float = 1.0) -> Tensors:
        """Gradients of each sample, {name: (B, *shape)} float32; zeros for a tensor that the loss does not depend on.

        grads: of the summed loss for `tensors` (None: the loss does not depend on it). scale: factor on them, B if the
        loss was a mean over samples.
        """
        given = self.by_prefix(grads)
        parts = (seen.gradients(given[prefix], scale) for prefix, seen in self.modules.items())
        return {name: value for part in parts for name, value in part.items()}

    def part(self, part: Part) -> Caught:
        """The same for some of the samples. `tensors` stay the whole batch's: cut their gradients in the same way."""
        return Caught({prefix: seen.part(part) for prefix, seen in self.modules.items()})

    def by_prefix(self, grads: Sequence[Tensor | None]) -> dict[str, Tensor | None]:
        """The gradients of `tensors` by holder; None also for a holder that was not called."""
        called = [prefix for prefix, seen in self.modules.items() if seen.output is not None]
        return dict.fromkeys(self.modules) | dict(zip(called, grads, strict=True))


class Seen:
    """What one holder saw of the batch. formulas: by name, for the requested tensors of this holder."""

    def __init__(
        self, prefix: str, module: nn.Module, formulas: Mapping[str, Formula], num_samples: int, num_rows: int = 1
    ):
        self.inputs: Tensor | None = None
        """a, or W a + b of an (IA)^3 on outputs; detached; None if not called or not needed"""
        self.output: Tensor | None = None
        """y, or l * a of a feed-forward (IA)^3; in the graph; None if not called"""
        self._prefix, self._module, self._formulas = prefix, module, formulas
        self._num_samples, self._num_rows = num_samples, num_rows
        self._versions: list[tuple[Tensor, int]] = []

    def part(self, part: Part) -> Seen:
        """The same for some of the samples."""
        seen = Seen(self._prefix, self._module, self._formulas, part.rows.stop - part.rows.start, self._num_rows)
        seen.inputs = None if self.inputs is None else part.of(self.inputs)
        seen.output, seen._versions = self.output, self._versions
        return seen

    def watch(self) -> list[RemovableHandle]:
        """Install the hooks; return their handles."""
        module: Any = self._module
        if _kind(module) == "(IA)^3" and module.is_feedforward:
            into = module.register_forward_pre_hook(lambda _, args: self._see_inputs(args[0]))
            return [into, module.base_layer.register_forward_pre_hook(lambda _, args: self._see_output(args[0]))]
        out = module.register_forward_hook(lambda _, args, y: self._see_output(y))
        if _kind(module) == "(IA)^3":
            return [out, module.base_layer.register_forward_hook(lambda _, args, y: self._see_inputs(y))]
        if set(self._formulas.values()) == {_bias}:
            return [out]  # biases need no inputs
        return [out, module.register_forward_pre_hook(lambda _, args: self._see_inputs(args[0]))]

    def _see_inputs(self, value: Tensor) -> None:
        self._see(value, self.inputs)
        self.inputs = value.detach()

    def _see_output(self, value: Any) -> None:
        if _kind(self._module) == "other" and not _ends_in_adding(value, _tensor(self._module, "bias")):
            _refuse(next(iter(self._formulas)), f"a {type(self._module).__name__} does not add it to its output")
        self._see(value, self.output)
        if not value.requires_grad:
            raise ModelError(
                f"{self._prefix}: its output has no gradient graph; is it under torch.no_grad or gradient "
                "checkpointing?"
            )
        self.output = value

    def _see(self, value: Tensor, before: Tensor | None) -> None:
        if before is not None:
            raise ModelError(
                f"{self._prefix}: called twice in one forward pass, so per-sample gradients are not known; choose a "
                "method without Fisher information"
            )
        if value.dim() < (4 if _kind(self._module) == "Conv2d" else 2) or not self._is_by_sample(len(value)):
            raise ModelError(
                f"{self._prefix}: axis 0 of {tuple(value.shape)} is not the {self._num_samples} samples, so "
                "per-sample gradients are not known; leave it out of method.peft.target_modules, or choose a method "
                "without Fisher information"
            )
        self._versions.append((value.detach(), value._version))  # a detached tensor shares the counter

    def _is_by_sample(self, size: int) -> bool:
        """True if axis 0 of this size has the samples, or the rows or windows of each sample."""
        if hasattr(self._module, WINDOWS):
            return size % self._num_samples == 0
        return size in (self._num_samples, self._num_rows * self._num_samples)

    def refuse_changes(self) -> None:
        """Raise ModelError if a recorded tensor was changed in place."""
        if any(value._version != version for value, version in self._versions):
            raise ModelError(
                f"{self._prefix}: its input or output was changed in place, so per-sample gradients are not known"
            )

    @property
    def is_linear(self) -> bool:
        """True for a Linear whose weight is requested: the gradient of a sample is sum_t e_t a_t^T."""
        return _kind(self._module) == "Linear" and FORMULAS["Linear"]["weight"] in self._formulas.values()

    def tokens(self, grad: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """For such a Linear, a (B, T, in) and e (B, T, out), float32; None if the loss does not depend on it.

        If its bias is requested too, a ends with a 1, and the gradient's last column is the bias's.
        """
        if grad is None or self.inputs is None:
            return None
        a = _by_token(self.inputs, self._num_samples)
        return F.pad(a, (0, 1), value=1.0) if len(self._formulas) > 1 else a, _by_token(grad, self._num_samples)

    def gradients(self, grad: Tensor | None, scale: float) -> Tensors:
        """Gradients of each sample. grad: of `output`, in its shape."""
        if grad is None:
            tensors = {name: _tensor(self._module, name) for name in self._formulas}
            return {name: torch.zeros(self._num_samples, *t.shape, device=t.device) for name, t in tensors.items()}
        e = _outputs_by_token(self._module, grad, self._num_samples) * scale
        # Without inputs no formula uses them.
        a = e if self.inputs is None else _inputs_by_token(self._module, self.inputs, self._num_samples)
        return {name: formula(self._module, a, e) for name, formula in self._formulas.items()}


def _inputs_by_token(module: Any, value: Tensor, num_samples: int) -> Tensor:
    """a in the formulas; for a convolution the patches, (B, places, in * height * width)."""
    if _kind(module) != "Conv2d":
        return _by_token(value, num_samples)
    patches: Tensor = F.unfold(value.float(), module.kernel_size, module.dilation, module.padding, module.stride)
    return patches.mT


def _outputs_by_token(module: Any, value: Tensor, num_samples: int) -> Tensor:
    """e in the formulas; for a convolution (B, places, out)."""
    return value.flatten(2).mT.float() if _kind(module) == "Conv2d" else _by_token(value, num_samples)


def _by_token(value: Tensor, num_samples: int) -> Tensor:
    """(B, ..., features), (B, features) or several rows per sample (k B, ..., features) -> (B, T, features) in float32;
    indices (B, ...) or (k B, ...) -> (B, T).
    """
    if not value.is_floating_point():
        return value.reshape(num_samples, -1)
    return value.reshape(num_samples, -1, value.shape[-1]).float()


def _tensor(module: Any, name: str) -> Any:
    """The parameter saved under this name, if any. PEFT stores (IA)^3's under its one adapter's name."""
    tensor = getattr(module, name.rpartition(".")[2], None)
    return next(iter(tensor.values())) if isinstance(tensor, nn.ParameterDict) else tensor


def _formulas(holders: Mapping[str, nn.Module], names: Collection[str]) -> dict[str, dict[str, Formula]]:
    """The formula of each named tensor, by holder and name, in the order of the holders."""
    held = Counter(id(p) for module in set(holders.values()) for p in module.parameters(recurse=False))
    found: dict[str, dict[str, Formula]] = {prefix: {} for prefix in holders}
    for name in sorted(names):
        prefix, _, leaf = name.rpartition(".")
        module = holders.get(prefix)
        tensor, formula = _tensor(module, name), FORMULAS[_kind(module)].get(leaf)
        if tensor is None or formula is None:
            _refuse(name, f"it belongs to {f'a {type(module).__name__}' if module else 'no known module'}")
        if held[id(tensor)] > 1:
            _refuse(name, "two modules share it, and their gradients add up")
        found[prefix][name] = formula
    return {prefix: formulas for prefix, formulas in found.items() if formulas}


def _ends_in_adding(output: Any, bias: Tensor) -> bool:
    """True if the graph's last operation of `output` is `something + bias`, on the last axis."""
    node: Any = getattr(output, "grad_fn", None)
    if type(node).__name__ != "AddBackward0" or bias.shape != output.shape[-1:]:
        return False
    return node._saved_alpha == 1 and sum(getattr(p, "variable", None) is bias for p, _ in node.next_functions) == 1


def _refuse(name: str, why: str) -> NoReturn:
    raise ModelError(
        f"'{name}': its per-sample gradients are not known, because {why}. "
        "Leave it out of the scope, or choose a method without Fisher information"
    )
