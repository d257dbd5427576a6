"""Squared per-sample gradients of every kind of module against one backward pass per sample, by autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PromptEncoderConfig,
    PromptEncoderReparameterizationType,
    PromptTuningConfig,
    get_peft_model,
)
from peft import PrefixTuningConfig as Prefix
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel
from transformers.models.deberta.modeling_deberta import DebertaLayerNorm

from fibec_ray.curvature.per_sample import Part, catch
from fibec_ray.curvature.sample_formulas import collect_holders
from fibec_ray.errors import ModelError
from fibec_ray.tensors import Tensors

LENGTHS = [7, 3, 5, 4]
"""tokens per sample: any batch of them is padded"""
NUM = len(LENGTHS)
SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIRTUAL: dict[str, Any] = {"task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": 4}
MLP: dict[str, Any] = {"encoder_hidden_size": 16, **VIRTUAL}


def bert() -> nn.Module:
    return BertModel(BertConfig(**SIZES))


def llama() -> nn.Module:
    return LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=1))


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2))


def adapted(body: Callable[[], nn.Module], config: Any) -> nn.Module:
    return get_peft_model(body(), config)


def only(model: nn.Module, wanted: Callable[[str], bool]) -> nn.Module:
    for name, p in model.named_parameters():
        p.requires_grad_(wanted(name))
    return model


def lora(*targets: str, **more: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=list(targets), **more)


def ia3(*targets: str, feedforward: str, **more: Any) -> IA3Config:
    return IA3Config(target_modules=[*targets, feedforward], feedforward_modules=[feedforward], **more)


class Classifier(nn.Module):
    """A body, the mean of its last states over real tokens, and a Linear head with bias."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body, self.head = body, nn.Linear(32, 3)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """(B, S), (B, S), (B,) -> losses (B,)"""
        return self.losses(self.body(input_ids=ids, attention_mask=mask).last_hidden_state, mask, labels)

    def losses(self, states: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        states = states[:, -mask.shape[1] :]
        pooled = (states * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        return F.cross_entropy(self.head(pooled), labels, reduction="none")


class Prompted(Classifier):
    """The same behind virtual tokens, computed for each sample on its own (PEFT's forward would repeat one row)."""

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        encoder: Any = self.body.prompt_encoder["default"]
        prompts = encoder(self.body.prompt_tokens["default"].expand(len(ids), -1))
        embeds = torch.cat([prompts, self.body.word_embeddings(ids)], dim=1)
        whole = torch.cat([mask.new_ones(prompts.shape[:2]), mask], dim=1)
        states = self.body.base_model(inputs_embeds=embeds, attention_mask=whole).last_hidden_state
        return self.losses(states, mask, labels)


class Speller(nn.Module):
    """BERT's language-model head on the first token, whose word is to be the label."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        logits = self.body(input_ids=ids, attention_mask=mask).logits[:, 0]
        return F.cross_entropy(logits, labels, reduction="none")


CASES: dict[str, Callable[[], nn.Module]] = {
    "lora, bert": lambda: Classifier(adapted(bert, lora("query", "value", "dense"))),
    "lora, llama": lambda: Classifier(adapted(llama, lora("q_proj", "v_proj"))),
    "lora, gpt2": lambda: Classifier(adapted(gpt2, lora("c_attn", fan_in_fan_out=True))),
    "ia3, bert": lambda: Classifier(adapted(bert, ia3("key", "value", feedforward="output.dense"))),
    "ia3, llama": lambda: Classifier(adapted(llama, ia3("k_proj", "v_proj", feedforward="down_proj"))),
    "ia3, gpt2": lambda: Classifier(adapted(gpt2, ia3("c_attn", feedforward="mlp.c_proj", fan_in_fan_out=True))),
    "prompt, bert": lambda: Prompted(adapted(bert, PromptTuningConfig(**VIRTUAL))),
    "prompt, llama": lambda: Prompted(adapted(llama, PromptTuningConfig(**VIRTUAL))),
    "p-tuning, bert": lambda: Prompted(adapted(bert, PromptEncoderConfig(**MLP))),
    "p-tuning, llama": lambda: Prompted(adapted(llama, PromptEncoderConfig(**MLP))),
    "prefix, bert": lambda: Classifier(adapted(bert, Prefix(**VIRTUAL))),
    "prefix, llama": lambda: Classifier(adapted(llama, Prefix(**VIRTUAL))),
    "prefix with projection, bert": lambda: Classifier(adapted(bert, Prefix(prefix_projection=True, **MLP))),
    "prefix with projection, llama": lambda: Classifier(adapted(llama, Prefix(prefix_projection=True, **MLP))),
    "biases, bert": lambda: Classifier(only(bert(), lambda name: name.endswith(".bias"))),
    "biases, bert's own head": lambda: Speller(
        only(BertForMaskedLM(BertConfig(**SIZES)), lambda n: n.endswith("bias"))
    ),
    "layer norms, bert": lambda: Classifier(only(bert(), lambda name: "LayerNorm" in name)),
    "transposed linears, gpt2": lambda: Classifier(only(gpt2(), lambda name: ".c_" in name)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def ready(case: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    """In evaluation mode, with trainable tensors as after some training: gradients reach all of them."""
    torch.manual_seed(0)
    model = case().eval()
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    return model.to(dtype)


def batch(rows: list[int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask and labels of these samples (all if not given), padded to the longest of them."""
    rng = torch.Generator().manual_seed(0)
    tokens = [torch.randint(1, 60, (length,), generator=rng) for length in LENGTHS]
    chosen = [tokens[row] for row in (range(NUM) if rows is None else rows)]
    labels = torch.tensor([0, 1, 2, 2])
    ids = nn.utils.rnn.pad_sequence(chosen, batch_first=True)
    return ids, (ids > 0).long(), labels if rows is None else labels[rows]


def saved_name(name: str) -> str:
    return name.replace(".default", "")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {saved_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def one_pass(model: nn.Module, *inputs: Tensor) -> Tensors:
    """Squares of all trainable tensors, from one batched pass."""
    with catch(collect_holders(model, saved_name), trainable(model), len(inputs[0])) as caught:
        losses = model(*inputs)
    return caught.squares(torch.autograd.grad(losses.sum(), caught.tensors, allow_unused=True))


def one_by_one(model: nn.Module, *samples: tuple[Tensor, ...]) -> Tensors:
    """The oracle: a backward pass for each sample, a batch of one without padding."""
    params = trainable(model)
    rows = []
    for sample in samples:
        grads = torch.autograd.grad(model(*sample).sum(), list(params.values()), allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(params.values(), grads, strict=True)])
    return {name: torch.stack(grads).square() for name, grads in zip(params, zip(*rows, strict=True), strict=True)}


def alone() -> list[tuple[Tensor, ...]]:
    return [batch([row]) for row in range(NUM)]


def assert_close(found: Tensors, expected: Tensors) -> None:
    """Each tensor to 1e-6 of its own size. (The gradient of BERT's key.bias is 0 up to rounding.)"""
    assert found.keys() == expected.keys()
    largest = max(float(value.norm()) for value in expected.values())
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == torch.float32, name
        assert float((found[name] - value).norm()) <= 1e-6 * float(value.norm()) + 1e-12 * largest, name


@each_case
def test_squares_of_a_padded_batch_are_those_of_single_samples(case: Callable[[], nn.Module]) -> None:
    model = ready(case)
    expected = one_by_one(model, *alone())
    without = {name for name, value in expected.items() if not value.any()}
    assert all("pooler" in name for name in without), without
    assert_close(one_pass(model, *batch()), expected)


@each_case
def test_the_backward_pass_of_a_training_step_gives_the_same_squares(case: Callable[[], nn.Module]) -> None:
    """The mean over the batch is scaled back; parameters get the gradients that they get without hooks."""
    model, params = ready(case), list(trainable(ready(case)))
    with catch(collect_holders(model, saved_name), params, NUM) as caught:
        losses = model(*batch())
    for tensor in caught.tensors:
        tensor.retain_grad()
    losses.mean().backward()
    assert_close(caught.squares([t.grad for t in caught.tensors], scale=NUM), one_pass(model, *batch()))
    plain = ready(case)
    plain(*batch()).mean().backward()
    for p, q in zip(trainable(model).values(), trainable(plain).values(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)  # type: ignore[arg-type]


@each_case
def test_bfloat16_gives_float32_squares(case: Callable[[], nn.Module]) -> None:
    found, exact = (one_pass(ready(case, dtype), *batch()) for dtype in (torch.bfloat16, torch.float32))
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in found.values())
    totals = [sum(float(value.sum()) for value in squares.values()) for squares in (found, exact)]
    assert totals[0] == pytest.approx(totals[1], rel=0.2)


@each_case
def test_no_hook_stays(case: Callable[[], nn.Module]) -> None:
    model = ready(case)
    before = num_hooks(model)
    one_pass(model, *batch())
    assert num_hooks(model) == before


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Tiny(nn.Module):
    """A table, a Linear on two axes of tokens, two kinds of LayerNorm, and a head: (B, T) indices -> losses (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.wide, self.norm = nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6)
        self.other, self.head = DebertaLayerNorm(6), nn.Linear(6, 1, bias=False)
        self.other.weight.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wide(self.table(ids).unflatten(1, (2, -1))).tanh()  # (B, 2, T / 2, 6)
        return self.head(self.other(self.norm(x).sin()).flatten(1, 2).mean(1)).squeeze(1).cosh()


def test_squares_are_those_of_vmapped_gradients() -> None:
    model = ready(Tiny)
    ids = torch.tensor([[0, 1, 2, 2], [4, 4, 4, 4], [1, 0, 3, 1]])
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(values: Tensors, sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, sample.unsqueeze(0))[0]

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, ids)
    assert len(grads) == 7 and "other.bias" in grads
    assert_close(one_pass(model, ids), {name: grad.square() for name, grad in grads.items()})


def test_one_forward_pass_serves_several_backward_passes() -> None:
    model, weights = ready(CASES["ia3, bert"]), torch.tensor([3.0, -1.0, 0.0, 2.0])
    with catch(collect_holders(model, saved_name), trainable(model), NUM) as caught:
        losses = model(*batch())
    once, weighted = (
        caught.squares(torch.autograd.grad((w * losses).sum(), caught.tensors, retain_graph=True))
        for w in (torch.ones(NUM), weights)
    )
    assert_close(weighted, {n: v.double() * weights.square().view(-1, *[1] * (v.dim() - 1)) for n, v in once.items()})


def by_hand(module: nn.Module, names: list[str], inputs: Tensor, grads: Tensor) -> dict[str, Any]:
    """Squares for given inputs and gradients of the outputs."""
    with catch({"x": module}, names, len(inputs)) as caught:
        module(inputs)
    return {name: value.tolist() for name, value in caught.squares([grads]).items()}


def test_tokens_add_up_before_they_are_squared() -> None:
    """Two tokens: G = 1 * [1, 2] + (-1) * [3, 5] = [-2, -3]; bias 1 - 1 = 0."""
    inputs, grads = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]]), torch.tensor([[[1.0], [-1.0]]])
    found = by_hand(nn.Linear(2, 1), ["x.weight", "x.bias"], inputs, grads)
    assert found == {"x.weight": [[[4.0, 9.0]]], "x.bias": [[0.0]]}


def test_a_row_of_a_table_adds_up_the_tokens_that_chose_it() -> None:
    """Sample 0 chooses row 1 twice: (1 + 2)^2; sample 1 chooses rows 2 and 0."""
    grads = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    found = by_hand(nn.Embedding(3, 1), ["x.weight"], torch.tensor([[1, 1], [2, 0]]), grads)
    assert found == {"x.weight": [[[0.0], [9.0], [0.0]], [[16.0], [0.0], [9.0]]]}


def test_scale_multiplies_gradients_before_they_are_squared() -> None:
    linear = nn.Linear(1, 1)
    with catch({"x": linear}, ["x.weight"], 1) as caught:
        linear(torch.ones(1, 1))
    assert caught.squares([torch.tensor([[2.0]])], scale=3.0)["x.weight"].tolist() == [[[36.0]]]


def test_only_the_named_tensors_are_there() -> None:
    model = ready(CASES["biases, bert"])
    names = ["body.encoder.layer.0.output.LayerNorm.bias", "head.weight"]
    with catch(collect_holders(model, saved_name), names, NUM) as caught:
        losses = model(*batch())
    found = caught.squares(torch.autograd.grad(losses.sum(), caught.tensors))
    everything = one_by_one(model, *alone())
    assert_close(found, {name: everything[name] for name in names})


def test_nothing_is_caught_for_no_names() -> None:
    model = ready(CASES["lora, bert"])
    with catch(collect_holders(model, saved_name), (), NUM) as caught:
        model(*batch())
        assert num_hooks(model) == num_hooks(ready(CASES["lora, bert"]))
    assert caught.tensors == [] and caught.squares([]) == {}


def test_biases_alone_keep_no_inputs() -> None:
    model = ready(CASES["biases, bert"])
    names = [name for name in trainable(model) if name.endswith("bias")]
    with catch(collect_holders(model, saved_name), names, NUM) as caught:
        model(*batch())
    assert caught.tensors and not caught.inputs


def test_holders_are_named_as_their_tensors_are_saved() -> None:
    model = ready(CASES["ia3, llama"])
    holders = collect_holders(model, saved_name)
    assert {name.rpartition(".")[0] for name in trainable(model)} == holders.keys()
    scaled = holders["body.base_model.model.layers.0.self_attn.k_proj"]
    assert type(scaled).__name__ == "Linear" and hasattr(scaled, "ia3_l") and not scaled.is_feedforward
    assert holders["head"] is model.head


def test_a_second_name_of_a_bias_leads_to_the_module_that_adds_it() -> None:
    holders = collect_holders(only(BertForMaskedLM(BertConfig(**SIZES)), lambda n: n.endswith("bias")), saved_name)
    assert type(holders["cls.predictions"]) is nn.Linear


def test_a_module_without_part_in_the_loss_has_zeros() -> None:
    """Called (its output is thrown away) or not called at all."""
    used, thrown, idle = nn.Linear(2, 1), nn.Linear(2, 3), nn.Linear(4, 5)
    holders = {"used": used, "thrown": thrown, "idle": idle}
    with catch(holders, ["used.weight", "thrown.bias", "idle.weight", "idle.bias"], 2) as caught:
        thrown(torch.ones(2, 2))
        loss = used(torch.ones(2, 2)).sum()
    found = caught.squares(torch.autograd.grad(loss, caught.tensors, allow_unused=True))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "used.weight": (2, 1, 2), "thrown.bias": (2, 3), "idle.weight": (2, 5, 4), "idle.bias": (2, 5),
    }  # fmt: skip
    assert [bool(value.any()) for value in found.values()] == [name.startswith("used") for name in found]


# --- what is refused


def refused(model: nn.Module, *inputs: Tensor, match: str, names: Any = None) -> None:
    before = num_hooks(model)
    wanted = trainable(model) if names is None else names
    with pytest.raises(ModelError, match=match), catch(collect_holders(model, saved_name), wanted, len(inputs[0])) as c:
        model(*inputs)
        assert c.tensors
    assert num_hooks(model) == before


def test_a_recurrent_prompt_encoder_is_refused_by_name() -> None:
    recurrent = PromptEncoderConfig(encoder_reparameterization_type=PromptEncoderReparameterizationType.LSTM, **MLP)
    match = r"'body.prompt_encoder.lstm_head.bias_hh_l0': .* it belongs to a LSTM. Leave it out of the scope, or choose"
    refused(Prompted(adapted(bert, recurrent)), *batch(), match=match)


@pytest.mark.parametrize("config", [PromptTuningConfig(**VIRTUAL), PromptEncoderConfig(**MLP)])
def test_prompts_that_all_samples_share_are_refused(config: Any) -> None:
    """As PEFT's own forward computes them: once, then repeated."""
    refused(
        Classifier(adapted(bert, config)), *batch(), match=r"encoder.embedding: axis 0 of \(1, 4\) is not the 4 sam"
    )


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3 x 3 with a border": {"kernel_size": 3, "padding": 1},
    "plain": {"kernel_size": 2},
    "without bias": {"kernel_size": 3, "bias": False},
    "strides": {"kernel_size": 3, "stride": 2, "padding": 1},
    "uneven": {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)},
    "holes": {"kernel_size": 2, "dilation": 2},
    "single pixels": {"kernel_size": 1},
}


class Sight(nn.Module):
    """Two convolutions, a maximum over squares, and a Linear."""

    def __init__(self, **settings: Any):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, **settings), nn.Conv2d(3, 4, 2)
        self.head = nn.LazyLinear(3)
        self(*images())  # sizes the head

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = F.max_pool2d(self.second(self.first(x).relu()).tanh(), 2)
        return F.cross_entropy(self.head(x.flatten(1)), labels, reduction="none")


def images(row: int | None = None) -> tuple[Tensor, Tensor]:
    x = torch.randn(NUM, 2, 7, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 2])
    return (x, labels) if row is None else (x[row : row + 1], labels[row : row + 1])


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_have_the_squares_of_single_samples(settings: dict[str, Any]) -> None:
    model = ready(lambda: Sight(**settings), torch.float32).double()
    wide = [tuple(part.double() if part.is_floating_point() else part for part in images(row)) for row in range(NUM)]
    x, labels = images()
    assert_close(one_pass(model, x.double(), labels), one_by_one(model, *wide))


def test_a_pixel_of_a_filter_by_hand() -> None:
    """y = w x + b with one weight, loss = sum of y: dw = the sum of the pixels, db = their number."""
    model = nn.Conv2d(1, 1, 1)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    with catch({"c": model}, ["c.weight", "c.bias"], 1) as caught:
        y = model(x)
    found = caught.gradients(torch.autograd.grad(y.sum(), caught.tensors))
    assert found["c.weight"].tolist() == [[[[[10.0]]]]] and found["c.bias"].tolist() == [[4.0]]


@pytest.mark.parametrize("settings", [{"groups": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}])
def test_convolutions_of_other_kinds_are_refused_by_name(settings: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, **settings))
    refused(model, torch.ones(3, 2, 5, 5), names=["0.weight"], match="'0.weight': .* belongs to a Conv2d")


def test_an_image_without_a_batch_axis_is_refused() -> None:
    """Even where it has as many channels as there are samples."""
    refused(nn.Sequential(nn.Conv2d(3, 3, 1)), torch.ones(3, 5, 5), match=r"0: axis 0 of \(3, 5, 5\) is not the 3 sam")


def test_a_weight_of_an_unknown_kind_is_refused_by_name() -> None:
    model = Classifier(only(llama(), lambda name: name == "norm.weight"))
    refused(model, *batch(), match=r"'body.norm.weight': .* belongs to a LlamaRMSNorm")


def test_a_bias_inside_a_function_is_refused_by_name() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.bias).tanh()

    refused(nn.Sequential(Inside()), torch.ones(3, 2), match="'0.bias': .* a Inside does not add it to its output")


def test_a_subclass_with_a_forward_of_its_own_is_refused() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    refused(nn.Sequential(Doubled(2, 2, bias=False)), torch.ones(3, 2), match="'0.weight': .* belongs to a Doubled")


def test_a_name_that_nobody_holds_is_refused() -> None:
    for name in ("1.weight", "0.prompt", "weight"):
        refused(nn.Sequential(nn.Linear(2, 2)), torch.ones(3, 2), names=[name], match=f"'{name}': ")
    refused(nn.Sequential(nn.Linear(2, 2, bias=False)), torch.ones(3, 2), names=["0.bias"], match="'0.bias': ")


def test_a_tensor_of_two_modules_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    refused(model, torch.ones(3, 2), names=["0.weight"], match="'0.weight': .* two modules share it")


def test_a_module_that_is_called_twice_is_refused() -> None:
    linear = nn.Linear(2, 2)
    refused(nn.Sequential(linear, linear), torch.ones(3, 2), match="0: called twice in one forward pass")


def test_a_table_without_a_batch_axis_is_refused() -> None:
    """(T,) indices, even where there happen to be as many as samples."""
    model = nn.Sequential(nn.Embedding(4, 2))
    refused(model, torch.tensor([0, 1, 2]), match=r"0: axis 0 of \(3,\) is not the 3 samples")


@pytest.mark.parametrize("shape", [(1, 2), (6, 2)])
def test_another_first_axis_than_samples_is_refused(shape: tuple[int, int]) -> None:
    """Positions that all samples share; tokens of all samples in one axis."""
    linear = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="is not the 3 samples"), catch({"x": linear}, ["x.bias"], 3):
        linear(torch.ones(shape))


@pytest.mark.parametrize("place", ["input", "output"])
def test_a_factor_that_is_changed_in_place_is_refused(place: str) -> None:
    linear, x = nn.Linear(2, 2), torch.ones(3, 2)
    with pytest.raises(ModelError, match="x: its input or output was changed in place"):
        with catch({"x": linear}, ["x.weight"], 3) as caught:
            y = linear(x)
            (x if place == "input" else y).mul_(2)
        assert caught.tensors


def test_a_pass_without_a_graph_is_refused() -> None:
    linear = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="x: its output has no gradient graph"), catch({"x": linear}, ["x.bias"], 3):
        linear.requires_grad_(False)(torch.ones(3, 2))
    assert num_hooks(linear) == 0


# --- several rows per sample


@each_case
def test_rows_of_a_sample_count_as_one(case: Callable[[], nn.Module]) -> None:
    """Four rows as two samples: the gradient of a sample is that of the sum of its two losses."""
    model = ready(case)
    params = trainable(model)
    with catch(collect_holders(model, saved_name), list(params), 2, num_rows=2) as caught:
        losses = model(*batch())
    grads = torch.autograd.grad(losses.sum(), caught.tensors, allow_unused=True)
    found = caught.gradients(grads)
    for i in range(2):
        both = torch.cat([model(*batch([row])) for row in (2 * i, 2 * i + 1)]).sum()
        expected = torch.autograd.grad(both, list(params.values()), allow_unused=True)
        for name, grad in zip(params, expected, strict=True):
            wanted = torch.zeros_like(params[name]) if grad is None else grad
            torch.testing.assert_close(found[name][i], wanted.float(), rtol=1e-5, atol=1e-6)


def test_the_part_of_one_lane_has_its_own_rows_and_tokens() -> None:
    """Three samples of two rows, padded from 2 to 4 tokens; the part are the last two samples."""
    part = Part(slice(1, 3), length=2, padded=4, total=3, num_rows=2)
    by_token, by_sample = torch.arange(6 * 4).view(6, 4, 1), torch.arange(3)
    assert part.of(by_token).flatten().tolist() == [8, 9, 12, 13, 16, 17, 20, 21]
    assert part.of(by_sample).tolist() == [1, 2]
