"""Adapters that compute in a bfloat16 base's dtype: values in float32, and the same gradients up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny
from peft_models import batch, made, stirred
from pydantic import ValidationError
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fibec_ray.config.experiment import Experiment
from fibec_ray.model_types import LaneBatch
from fibec_ray.models.process_state import allow_tf32, restored
from fibec_ray.models.products import has_bfloat16
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import TorchModel
from fibec_ray.parts.peft.adapter import Adapter
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.lora import Lora

KINDS: dict[str, Peft] = {"lora": Lora(r=4), "adapter": Adapter(bottleneck=4)}
ROUNDING = 0.08
"""Largest relative error of a tensor's gradient (norms); 0.02 to 0.06 with adapters in float32 on a bfloat16 base"""
STATES = 3 * 7 * 32
"""entries of the states of a batch, (3, 7, 32)"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def model_of(part: Peft, adapter_dtype: str, cache: Path, family: str = "bert", **changes: Any) -> TorchModel:
    changes = {"dtype": "bfloat16", "adapter_dtype": adapter_dtype} | changes
    return stirred(made(part, family, "mean_pool", cache, **changes))


def exactly(part: Peft, cache: Path, family: str = "bert") -> TorchModel:
    """The same weights, but all products in float32."""
    model = model_of(part, "float32", cache, family)
    model.peft_model.float()
    return model


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm().clamp(min=1e-9))


class Casts(TorchDispatchMode):
    """Counts whole states that are cast to float32."""

    def __init__(self) -> None:
        super().__init__()
        self.states = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.dtype == torch.float32 and out.numel() == STATES:
            self.states += 1
        return out


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_float32_values(kind: str, family: str, cache: Path) -> None:
    model = model_of(KINDS[kind], "base", cache, family)
    assert all(value.dtype == torch.float32 for value in model.read().values())
    found, exact = gradients(model), gradients(exactly(KINDS[kind], cache, family))
    assert found.keys() == exact.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32 and error(value, exact[name]) < ROUNDING, name


def gradients(model: TorchModel) -> dict[str, Tensor]:
    losses = model.forward(batch()).losses
    assert losses.dtype == torch.float32
    return dict(zip(model.trainable, torch.autograd.grad(losses.sum(), list(model.trainable.values())), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_squares_of_single_samples_are_those_of_a_loop(kind: str, cache: Path) -> None:
    model = model_of(KINDS[kind], "base", cache)
    names = [name for name in model.trainable if name.endswith(".weight")]
    out, caught = model.per_sample_grads(batch(), names)
    found = caught.gradients(model.grad(out.losses.sum(), caught.tensors))
    exact = exactly(KINDS[kind], cache)
    for row in range(3):
        losses = exact.forward(batch()).losses
        grads = torch.autograd.grad(losses[row], [exact.trainable[name] for name in names])
        for name, grad in zip(names, grads, strict=True):
            assert found[name].dtype == torch.float32 and error(found[name][row], grad) < ROUNDING, name


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_compute_as_alone(kind: str, cache: Path) -> None:
    model = model_of(KINDS[kind], "base", cache)
    alone = model.forward(batch()).losses
    outs, _ = model.together([LaneBatch(model.trainable, batch())] * 2)
    for out in outs:
        torch.testing.assert_close(out.losses, alone, rtol=0.02, atol=0.02)


@pytest.mark.skipif(not has_bfloat16(), reason="products on CPUs without bfloat16 instructions cast states to float32")
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_not_cast(kind: str, cache: Path) -> None:
    """Only the head sees states in float32."""
    counts = {}
    for dtype in ("base", "float32"):
        model = model_of(KINDS[kind], dtype, cache, attention="eager")
        with Casts() as seen:
            model.forward(batch())
        counts[dtype] = seen.states
    assert counts["base"] == 1 and counts["float32"] == 1 + 3 * 2


def test_auto_is_float32_on_a_cpu_and_the_bases_dtype_on_a_gpu() -> None:
    spec = Backbone(init="random", config={"model_type": "bert"}, tokenizer="minilm", dtype="bfloat16")
    assert (spec.narrows_adapters("cpu"), spec.narrows_adapters("cuda")) == (False, True)
    chosen = spec.model_copy(update={"adapter_dtype": "base"})
    assert chosen.narrows_adapters("cpu") and chosen.narrows_adapters("cuda")
    assert not spec.model_copy(update={"adapter_dtype": "float32"}).narrows_adapters("cuda")
    assert not spec.model_copy(update={"dtype": "float32"}).narrows_adapters("cuda")


@pytest.mark.parametrize("part", [Lora(r=2, use_dora=True)])
def test_kinds_that_cannot_compute_in_the_bases_dtype_use_float32(part: Peft, cache: Path) -> None:
    assert not part.computes_in_base_dtype
    assert model_of(part, "base", cache).forward(batch()).losses.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter_dtype": "base"}, "adapter_dtype has no effect with dtype: float32"),
        ({"dtype": "bfloat16", "tf32": True}, "tf32 has no effect with dtype: bfloat16"),
    ],
)
def test_settings_without_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Backbone(**changes)


def test_base_is_refused_for_kinds_that_compute_in_float32() -> None:
    settings = make_tiny("fedavg")
    settings["backbone"] = settings["backbone"] | {"dtype": "bfloat16", "adapter_dtype": "base"}
    assert Experiment.model_validate(settings).backbone.adapter_products == "base"
    settings["method"] = settings["method"] | {"peft": {"kind": "ia3"}}
    with pytest.raises(ValidationError, match="method.peft: ia3 computes in float32; set backbone.adapter_dtype=auto"):
        Experiment.model_validate(settings)
    settings["backbone"]["adapter_dtype"] = "auto"
    Experiment.model_validate(settings)


def test_tf32_is_refused_where_nothing_computes_on_a_gpu() -> None:
    settings = make_tiny("fedavg")
    settings["backbone"] = settings["backbone"] | {"tf32": True}
    assert Experiment.model_validate(settings).backbone.uses_tf32
    settings["fleet"] = settings["fleet"] | {"device": "cpu"}
    with pytest.raises(ValidationError, match="backbone.tf32 has an effect only on a GPU"):
        Experiment.model_validate(settings)


def test_tf32_is_set_and_restored() -> None:
    with restored():
        allow_tf32(True)
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        with restored():
            allow_tf32(False)
            assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
