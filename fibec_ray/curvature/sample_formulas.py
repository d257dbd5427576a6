"""The gradient of one sample, by the kind of the module that holds a tensor: the formulas of `per_sample.py`.

e_it is the gradient of the module's output at token t of sample i, a_it what the module saw there:

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
scaling.

Window attention (Swin) calls its Linears with rows of windows, each sample's windows one after the other. Its modules
are marked as `by_window`; the windows of a sample then count as its tokens.

Shapes: B samples, T tokens (all axes between the first and the last), `in`/`out` features, k rows per sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.errors import ModelError

Formula = Callable[[Any, Tensor, Tensor], Tensor]
"""(module, a (B, T, in), e (B, T, out)) -> gradient of each sample (B, *shape), float32; indices a: (B, T) int64"""


def _table(module: Any, a: Tensor, e: Tensor) -> Tensor:
    # A product, because scatter_add_ on a GPU is not deterministic; prompt tables are small.
    chosen = F.one_hot(a, module.num_embeddings).to(e.dtype)  # (B, T, rows)
    return torch.bmm(chosen.mT, e)


def bias_gradient(module: Any, a: Tensor, e: Tensor) -> Tensor:
    """A bias's formula, which does not use `a`."""
    return e.sum(1)


WINDOWS = "by_window"
"""Attribute of modules with the rows of several windows of each sample on axis 0, sample by sample."""


def mark_windows(module: nn.Module) -> None:
    """Mark all modules at or below `module` as called with rows of windows."""
    for child in module.modules():
        setattr(child, WINDOWS, True)


FORMULAS: dict[str, dict[str, Formula]] = {
    "Linear": {"weight": lambda _, a, e: torch.bmm(e.mT, a), "bias": bias_gradient},
    "Conv2d": {"weight": lambda m, a, e: torch.bmm(e.mT, a).view(len(a), *m.weight.shape), "bias": bias_gradient},
    "Conv1D": {"weight": lambda _, a, e: torch.bmm(a.mT, e), "bias": bias_gradient},
    "LayerNorm": {
        "weight": lambda m, a, e: (e * F.layer_norm(a, m.normalized_shape, eps=m.eps)).sum(1),
        "bias": bias_gradient,
    },
    "Embedding": {"weight": _table},
    "(IA)^3": {"ia3_l": lambda m, a, e: (e * a).sum(1).view(-1, *tensor_of(m, "ia3_l").shape)},
    "its own": {"weight": lambda m, a, e: m.sample_gradients(a, e)},
    "other": {"bias": bias_gradient},
}
"""By the kind of module and the last part of the tensor's name."""


def kind_of(module: Any) -> str:
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
    known = [part for part in module.modules() if kind_of(part) != "other"]
    owners = {(leaf, id(p)): part for part in known for leaf, p in part.named_parameters(recurse=False)}
    holders: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        trainable = [(leaf, p) for leaf, p in part.named_parameters(recurse=False) if p.requires_grad]
        if not trainable:
            continue
        if isinstance(part, nn.ParameterDict) and name.endswith(".ia3_l"):
            part = module.get_submodule(name.rpartition(".")[0])
        elif len(trainable) == 1 and kind_of(part) == "other":
            # BERT's language-model head has a second name for the bias of its Linear.
            part = owners.get((trainable[0][0], id(trainable[0][1])), part)
        holders[saved_name(f"{name}.{trainable[0][0]}").rpartition(".")[0]] = part
    return holders


def formulas_of(holders: Mapping[str, nn.Module], names: Collection[str]) -> dict[str, dict[str, Formula]]:
    """The formula of each named tensor, by holder and name, in the order of the holders. Raises ModelError."""
    held = Counter(id(p) for module in set(holders.values()) for p in module.parameters(recurse=False))
    found: dict[str, dict[str, Formula]] = {prefix: {} for prefix in holders}
    for name in sorted(names):
        prefix, _, leaf = name.rpartition(".")
        module = holders.get(prefix)
        tensor, formula = tensor_of(module, name), FORMULAS[kind_of(module)].get(leaf)
        if tensor is None or formula is None:
            refuse(name, f"it belongs to {f'a {type(module).__name__}' if module else 'no known module'}")
        if held[id(tensor)] > 1:
            refuse(name, "two modules share it, and their gradients add up")
        found[prefix][name] = formula
    return {prefix: formulas for prefix, formulas in found.items() if formulas}


def inputs_by_token(module: Any, value: Tensor, num_samples: int) -> Tensor:
    """a in the formulas; for a convolution the patches, (B, places, in * height * width)."""
    if kind_of(module) != "Conv2d":
        return by_token(value, num_samples)
    patches: Tensor = F.unfold(value.float(), module.kernel_size, module.dilation, module.padding, module.stride)
    return patches.mT


def outputs_by_token(module: Any, value: Tensor, num_samples: int) -> Tensor:
    """e in the formulas; for a convolution (B, places, out)."""
    return value.flatten(2).mT.float() if kind_of(module) == "Conv2d" else by_token(value, num_samples)


def by_token(value: Tensor, num_samples: int) -> Tensor:
    """(B, ..., features), (B, features) or several rows per sample (k B, ..., features) -> (B, T, features) in float32;
    indices (B, ...) or (k B, ...) -> (B, T).
    """
    if not value.is_floating_point():
        return value.reshape(num_samples, -1)
    return value.reshape(num_samples, -1, value.shape[-1]).float()


def tensor_of(module: Any, name: str) -> Any:
    """The parameter saved under this name, if any. PEFT stores (IA)^3's under its one adapter's name."""
    tensor = getattr(module, name.rpartition(".")[2], None)
    return next(iter(tensor.values())) if isinstance(tensor, nn.ParameterDict) else tensor


def refuse(name: str, why: str) -> NoReturn:
    """Raise ModelError for a tensor without a known per-sample gradient."""
    raise ModelError(
        f"'{name}': its per-sample gradients are not known, because {why}. "
        "Leave it out of the scope, or choose a method without Fisher information"
    )
