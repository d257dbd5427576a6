"""Which products of a backbone LoRA is put beside, in every family that has a row in the table.

Shapes: 3 samples of 7, 4 and 2 tokens, H = 32, L = 3.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from batches import first, row
from peft_models import batch, made, one_by_one, squares_of, stirred
from pydantic import ValidationError
from safetensors.torch import load_file

from fibec_ray.config.load import check
from fibec_ray.errors import ModelError
from fibec_ray.model_types import LaneBatch
from fibec_ray.models.torch_model import TorchModel
from fibec_ray.parts.peft.adalora import AdaLora
from fibec_ray.parts.peft.library import Ia3, Loha
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.runs.simulation import simulate

SPLIT = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
GATED = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
BERT = {f"attention.self.{name}" for name in ("query", "key", "value")} | {"attention.output.dense"}
EXPECTED: dict[str, tuple[set[str], set[str], set[str]]] = {
    **{
        family: ({"self_attn.q_proj", "self_attn.v_proj"}, SPLIT | {"self_attn.o_proj"}, GATED)
        for family in ("llama", "mistral", "qwen2")
    },
    "opt": ({"self_attn.q_proj", "self_attn.v_proj"}, SPLIT | {"self_attn.out_proj"}, {"fc1", "fc2"}),
    "gpt2": ({"attn.c_attn"}, {"attn.c_attn", "attn.c_proj"}, {"mlp.c_fc", "mlp.c_proj"}),
    **{
        family: ({"attention.self.query", "attention.self.value"}, BERT, {"intermediate.dense", "output.dense"})
        for family in ("bert", "roberta")
    },
    "distilbert": (
        {"attention.q_lin", "attention.v_lin"},
        {f"attention.{name}_lin" for name in "qkv"} | {"attention.out_lin"},
        {"ffn.lin1", "ffn.lin2"},
    ),
}
"""Query and value, all of the attention, and what else a block has; by family."""

EVERY = pytest.mark.parametrize("family", EXPECTED)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def block_part(name: str) -> str:
    """What a name says within its transformer block: "h.0.attn.c_proj" -> "attn.c_proj"; "" outside blocks."""
    found = re.search(r"(?:^|\.)(?:layers?|h|blocks?)\.\d+\.(.+)", name)
    return found[1] if found else ""


def adapted(model: TorchModel) -> set[str]:
    return {block_part(name).partition(".lora_")[0] for name in model.trainable if model.is_adapter(name)}


@EVERY
@pytest.mark.filterwarnings("error:fan_in_fan_out")
def test_what_is_adapted_by_default_and_by_a_word(family: str, cache: Path) -> None:
    default, attention, rest = EXPECTED[family]
    found = [
        adapted(made(Lora(r=2, target_modules=targets), family, "mean_pool", cache))
        for targets in (None, "attention", "all-linear", tuple(default))
    ]
    assert found == [default, attention, attention | rest, default]


@EVERY
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_a_step_changes_the_adapter_alone(family: str, targets: Any, cache: Path) -> None:
    model = stirred(made(Lora(r=2, target_modules=targets), family, "mean_pool", cache))
    before = {name: p.detach().clone() for name, p in model.peft_model.named_parameters()}
    optimizer = torch.optim.SGD(model.trainable.values(), lr=0.1)
    model.forward(batch()).losses.mean().backward()
    optimizer.step()
    changed = {name for name, p in model.peft_model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".lora_" in name}


@EVERY
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_squares_of_single_samples_are_those_of_one_backward_pass_each(family: str, targets: Any, cache: Path) -> None:
    if (family, targets) == ("opt", "all-linear"):
        targets = "attention"  # its feed-forward has none, see below
    model = stirred(made(Lora(r=2, target_modules=targets), family, "mean_pool", cache))
    model.peft_model.double()  # in float32, small entries are off by the rounding of large ones
    names = list(model.trainable)
    ours, loop = squares_of(model, batch(), names), one_by_one(model, batch(), names)
    for name in names:
        torch.testing.assert_close(ours[name], loop[name], rtol=1e-3, atol=1e-5, check_dtype=False)


@EVERY
def test_lanes_are_their_devices_one_after_the_other(family: str, cache: Path) -> None:
    """Two devices with values of their own, one with samples 0 and 1, the other with 2; and with a sample each."""
    model = stirred(made(Lora(r=2, target_modules="all-linear"), family, "mean_pool", cache))
    assert model.obstacle_to_lanes() is None
    mine = model.read()
    values = [mine, {name: 1.5 * value for name, value in mine.items()}]
    first_two = first(batch(), 2)
    for samples in ([first_two, row(batch(), 2)], [row(batch(), 0), row(batch(), 1)]):
        together, _ = model.together([LaneBatch(own, each) for own, each in zip(values, samples, strict=True)])
        for own, each, out in zip(values, samples, together, strict=True):
            model.load(own)
            torch.testing.assert_close(model.forward(each).losses, out.losses)


def test_gpt2s_fused_projection_is_adapted_in_the_orientation_that_its_weight_has(cache: Path) -> None:
    """Its weight is (in, out): with W + (s B A)^T in its place, s = alpha / r = 8, the model is the adapted one."""
    model = stirred(made(Lora(r=2, alpha=16), "gpt2", "mean_pool", cache))
    assert model.adapter_config["fan_in_fan_out"] is True
    expected = model.forward(batch()).losses
    for layer in model.peft_model.modules():
        if hasattr(layer, "lora_A"):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            assert (a.shape, b.shape) == ((2, 32), (96, 2)) and layer.base_layer.weight.shape == (32, 96)
            with torch.no_grad():
                layer.base_layer.weight += 8 * (b @ a).T
                b.zero_()
    torch.testing.assert_close(model.forward(batch()).losses, expected)


@pytest.mark.parametrize("method", ["fibecfed", "fipa"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_methods_run_on_gpt2(method: str, lanes: int, tiny_settings: Any, tmp_path: Path) -> None:
    """Fisher information, layers' scores, neurons' masks and factors of its fused, transposed projection. FibecFed's
    personal blocks are as at the start in the global adapter."""
    config = {"model_type": "gpt2", "vocab_size": 30522, "n_embd": 32, "n_layer": 3, "n_head": 2}
    backbone = {"config": config, "head": "causal_lm"}
    settings = tiny_settings(method, backbone=backbone, rounds=2, data={"max_length": 24}, fleet={"lanes": lanes})
    run = simulate(check(settings, "test"), tmp_path / "run")
    assert all(row["train_loss"] > 0 for row in run.rows if row["round"] >= 0)
    adapter = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    learnt = [value for name, value in adapter.items() if "lora_B" in name and value.any()]
    assert {tuple(value.shape) for value in learnt} == {(96, 8)} and len(learnt) == (3 if method == "fipa" else 2)


def test_kinds_with_a_choice_of_their_own_keep_it(cache: Path) -> None:
    """(IA)^3 scales keys, values and the feed-forward; peft knows no Linears of DistilBERT for AdaLoRA."""
    names = {block_part(n).partition(".ia3_l")[0] for n in made(Ia3(), "llama", "mean_pool", cache).trainable}
    assert names >= {"self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"} and "self_attn.q_proj" not in names
    with pytest.raises(ModelError, match="name Linears of this backbone, .*q_lin.*; or set it to attention"):
        made(AdaLora(), "distilbert", "mean_pool", cache)
    assert made(AdaLora(target_modules="attention"), "distilbert", "mean_pool", cache)


# --- refused


def test_a_name_that_is_not_there_beside_one_that_is(cache: Path) -> None:
    with pytest.raises(ModelError) as caught:
        made(Lora(target_modules=("q_proj", "v_porj")), "llama", "mean_pool", cache)
    assert str(caught.value) == (
        "method.peft.target_modules: no module of this llama is called 'v_porj' (did you mean 'v_proj'?); name Linears "
        "of this backbone, such as mlp.down_proj, mlp.gate_proj, mlp.up_proj, self_attn.k_proj, self_attn.o_proj, "
        "self_attn.q_proj, self_attn.v_proj; or set it to attention (q_proj, k_proj, v_proj, o_proj) or all-linear"
    )


def test_a_family_that_nobody_knows_asks_for_names_and_takes_each_remedy(cache: Path) -> None:
    """XLM keeps the parts of its blocks in lists of their own."""
    for targets, why in ((None, ""), ("attention", "attention is not known")):
        with pytest.raises(ModelError, match=f"target_modules: .*{why}.*name Linears of this backbone, .*q_lin") as e:
            made(Lora(target_modules=targets), "xlm", "mean_pool", cache)
        assert str(e.value).endswith("such as k_lin, lin1, lin2, out_lin, q_lin, v_lin; or set it to all-linear")
    for targets in (("q_lin", "lin1"), "all-linear"):
        names = made(Lora(target_modules=targets), "xlm", "mean_pool", cache).trainable
        found = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names if ".lora_" in name}
        rest = {"k_lin", "lin2", "out_lin", "v_lin"} if targets == "all-linear" else set()
        assert found == {"q_lin", "lin1"} | rest


@pytest.mark.parametrize("family", ["albert", "mpnet", "modernbert", "deberta-v2", "bloom"])
def test_every_word_and_every_name_that_an_error_offers_can_be_taken(family: str, cache: Path) -> None:
    with pytest.raises(ModelError) as caught:
        made(Lora(target_modules=("nothing",)), family, "mean_pool", cache)
    names = str(caught.value).partition("such as ")[2].partition(";")[0].split(", ")
    for targets in ("attention", "all-linear", tuple(names), None, *((name,) for name in names)):
        model = made(Lora(target_modules=targets), family, "mean_pool", cache)
        assert any(".lora_" in name for name in model.trainable)


def test_a_kind_that_cannot_adapt_gpt2s_products_says_so(cache: Path) -> None:
    with pytest.raises(ModelError, match="method.peft: loha adapts Linears, but a gpt2 has Conv1D instead"):
        made(Loha(), "gpt2", "mean_pool", cache)


def test_opts_feed_forward_has_no_gradients_of_single_samples(cache: Path) -> None:
    model = stirred(made(Lora(target_modules=("fc1",)), "opt", "mean_pool", cache))
    with pytest.raises(ModelError, match=r"fc1.lora_A: axis 0 of \(21, 32\) is not the 3 samples.*leave it out of"):
        squares_of(model, batch(), list(model.trainable))


def test_a_word_that_means_nothing() -> None:
    with pytest.raises(ValidationError, match=r"attention or all-linear, or a list of names such as \[query\]"):
        Lora(target_modules="query")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])
def test_all_linear_leaves_out_what_peft_does_not_adapt(family: str) -> None:
    """Their kernels read the weight of out_proj past the module."""
    config = transformers.AutoConfig.for_model(family, vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    attached = Lora(target_modules="all-linear").attach(transformers.AutoModel.from_config(config), None)
    found = {name.partition(".lora_")[0].rpartition(".")[2] for name, _ in attached.module.named_parameters()
             if ".lora_" in name}  # fmt: skip
    assert found == {"in_proj", "x_proj", "dt_proj"}
    with pytest.raises(ModelError, match="incompatible with Mamba") as refused:
        Lora(target_modules=("out_proj",)).attach(transformers.AutoModel.from_config(config), None)
    assert "mixer.out_proj" not in str(refused.value)
