"""Every PEFT kind in the model that devices train: on an encoder and a decoder, with every head that they have.

Shapes: 3 samples of 7, 4 and 2 tokens, H = 32, L = 3, V = 50, C = 3.
"""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers
from batches import row
from peft_models import (
    AUTO,
    HEADS,
    NOT_APPLICABLE,
    SETTINGS,
    batch,
    made,
    one_by_one,
    part_of,
    ready,
    saved,
    scores_of,
    squares_of,
    stirred,
)
from rotation import in_turn

from fibec_ray.directions import COEFFICIENTS
from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import prepare
from fibec_ray.parts.peft import PEFTS
from fibec_ray.parts.peft.library import InLinears
from fibec_ray.parts.peft.load import load_adapter

pytestmark = pytest.mark.filterwarnings(
    "ignore:The PEFT config's", "ignore:Specified to not", "ignore:Could not find", "ignore:fan_in_fan_out"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


APPLICABLE = [(name, family) for name in SETTINGS for family in HEADS if (name, family) not in NOT_APPLICABLE]
ALL = [
    (name, family, head)
    for name, family in APPLICABLE
    for head in HEADS[family]
    # What is inside Linears knows nothing of heads; test_torch_model.py has LoRA with all of them.
    if not issubclass(PEFTS[SETTINGS[name]["kind"]], InLinears) or head in ("model", "causal_lm")
]
each = pytest.mark.parametrize(("name", "family", "head"), in_turn(ALL, 30, "kinds of adapters"))
each_pooled = pytest.mark.parametrize(("name", "family"), APPLICABLE, ids=["-".join(case) for case in APPLICABLE])


@pytest.mark.parametrize(("name", "family"), NOT_APPLICABLE, ids=["-".join(case) for case in NOT_APPLICABLE])
@pytest.mark.parametrize("head", ["mean_pool", "model"])
def test_a_kind_that_does_not_apply_says_so(name: str, family: str, head: str, cache: Path) -> None:
    with pytest.raises(ModelError, match=NOT_APPLICABLE[name, family]):
        made(part_of(name), family, head, cache)


# --- the forward pass


@each
@torch.no_grad()
def test_padding_changes_nothing(name: str, family: str, head: str, cache: Path) -> None:
    model, data = ready(name, family, head, cache), batch()
    together, alone = model.forward(data), [model.forward(row(data, i)) for i in range(3)]
    torch.testing.assert_close(together.losses, torch.cat([out.losses for out in alone]))
    torch.testing.assert_close(together.scores, torch.cat([out.scores for out in alone]))


@each
@torch.no_grad()
def test_token_embeddings_in_place_of_tokens_change_nothing(name: str, family: str, head: str, cache: Path) -> None:
    model, data = ready(name, family, head, cache), batch()
    torch.testing.assert_close(model.forward(data, embeds=model.embed(data)).losses, model.forward(data).losses)


@each
@torch.no_grad()
def test_states_are_those_of_a_samples_own_tokens(name: str, family: str, head: str, cache: Path) -> None:
    """The last ones are what a mean-pool head sees; there are as many as blocks."""
    model, data = ready(name, family, head, cache), batch()
    out = model.forward(data, hidden=True)
    assert [states.shape for states in out.hidden] == [(3, 7, 32)] * 3
    for i in range(3):
        alone = model.forward(row(data, i), hidden=True)
        for ours, own in zip(out.hidden, alone.hidden, strict=True):
            torch.testing.assert_close(ours[i, : own.shape[1]], own[0])
    if head == "mean_pool" and family == "bert":
        last, own = out.hidden[-1], model.read()
        means = torch.stack([last[i, : data.inputs["attention_mask"][i].sum()].mean(0) for i in range(3)])
        torch.testing.assert_close(out.scores, means @ own["head.weight"].T + own["head.bias"])


@each
@torch.no_grad()
def test_what_was_trained_changes_the_outputs(name: str, family: str, head: str, cache: Path) -> None:
    model, fresh = ready(name, family, head, cache), made(part_of(name), family, head, cache)
    fresh.load({n: value for n, value in model.read().items() if not model.is_adapter(n)})
    fresh.train(False)
    assert not torch.allclose(model.forward(batch()).scores, fresh.forward(batch()).scores, atol=1e-4)


@each
def test_only_what_is_trainable_gets_gradients_and_all_of_it(name: str, family: str, head: str, cache: Path) -> None:
    model = stirred(made(part_of(name), family, head, cache))
    model.forward(batch()).losses.sum().backward()
    trainable = {id(value) for value in model.trainable.values()}
    assert all(p.grad is None and not p.requires_grad for p in model.peft_model.parameters() if id(p) not in trainable)
    without = {COEFFICIENTS}  # trained by differences of losses, and not in the forward pass
    assert all(value.grad is not None for n, value in model.trainable.items() if n not in without)


@each_pooled
def test_on_a_bfloat16_base_what_is_trained_is_float32(name: str, family: str, cache: Path) -> None:
    if "bitfit" in name or name == "full":
        with pytest.raises(ModelError, match="trains .* in (the base's|its own) dtype; set backbone.dtype: float32"):
            made(part_of(name), family, "mean_pool", cache, dtype="bfloat16")
        return
    model = stirred(made(part_of(name), family, "mean_pool", cache, dtype="bfloat16"))
    out = model.forward(batch(), hidden=True)
    assert {value.dtype for value in model.trainable.values()} == {torch.float32}
    assert (out.losses.dtype, out.hidden[0].dtype) == (torch.float32, torch.bfloat16)
    out.losses.sum().backward()
    whole = ready(name, family, "mean_pool", cache).forward(batch())
    torch.testing.assert_close(out.losses, whole.losses, rtol=0.1, atol=0.1)


# --- names and values


@each
def test_names_tell_adapters_from_heads_and_blocks_apart(name: str, family: str, head: str, cache: Path) -> None:
    model = ready(name, family, head, cache)
    heads = {n for n in model.trainable if not model.is_adapter(n)}
    assert all(model.layer_of(n) is None for n in heads) and len(heads) < len(model.trainable)
    words = {"mean_pool": ("head.",), "model": ("classifier.", "score.")}.get(head, ())
    assert bool(heads) == bool(words) and all(any(word in n for word in words) for n in heads)
    layers = [model.layer_of(n) for n in model.trainable if model.is_adapter(n)]
    assert set(layers) <= {None, 0, 1, 2}
    assert len({layers.count(layer) for layer in range(3)}) == 1, "blocks are alike"
    assert {n.rpartition(".")[0] for n in model.trainable} <= model.holders.keys() | {"head"}


@each_pooled
def test_initial_values_depend_on_the_seed_alone(name: str, family: str, cache: Path) -> None:
    torch.manual_seed(1)
    one = made(part_of(name), family, "mean_pool", cache).read()
    torch.manual_seed(2)
    same = made(part_of(name), family, "mean_pool", cache).read()
    assert one.keys() == same.keys() and all(torch.equal(one[n], same[n]) for n in one)


# --- the gradient of each sample

REFUSED = {"dora", "loha", "lokr", "vera", "sparse_lora", "adalora", "p_tuning with an LSTM", "full"}


@each
def test_the_gradient_of_each_sample_is_exact_or_refused(name: str, family: str, head: str, cache: Path) -> None:
    """In float64 against one backward pass for each sample."""
    model, data = stirred(made(part_of(name), family, head, cache)), batch()
    model.peft_model.double()
    names = [n for n in model.trainable if model.is_adapter(n)]
    if name in REFUSED:
        with pytest.raises(ModelError, match="its per-sample gradients are not known|is not the 3 samples"):
            squares_of(model, data, names)
        return
    squares, expected = squares_of(model, data, names), one_by_one(model, data, names)
    largest = max(float(value.norm()) for value in expected.values())
    assert squares.keys() == expected.keys() and largest > 0
    for n, value in expected.items():
        assert float((squares[n] - value).norm()) <= 1e-5 * float(value.norm()) + 1e-9 * largest, n


# --- the saved adapter


@each
@torch.no_grad()
def test_the_saved_adapter_gives_the_same_scores_when_it_is_loaded(
    name: str, family: str, head: str, cache: Path, tmp_path: Path
) -> None:
    model, data = stirred(made(part_of(name), family, head, cache)), batch()
    model.load({n: torch.zeros_like(value) for n, value in model.trainable.items() if n.endswith(".sparse")})
    folder = saved(model, part_of(name), tmp_path)
    base = getattr(transformers, AUTO[head]).from_pretrained(prepare(model._spec, 0, 3, cache))
    if part_of(name).trains_base:
        whole = type(base).from_pretrained(folder).eval()
    elif "peft_type" in model.adapter_config:
        whole = peft.PeftModel.from_pretrained(base, folder).eval()
    else:
        with pytest.raises((KeyError, ValueError)):
            peft.PeftModel.from_pretrained(base, folder)
        whole = load_adapter(base, folder)
    found = torch.cat([scores_of(whole, model, head, row(data, i)) for i in range(3)])
    torch.testing.assert_close(found, model.forward(data).scores)


def test_what_is_no_adapter_of_ours_is_refused_with_its_folder(tmp_path: Path) -> None:
    base = torch.nn.Linear(1, 1)
    with pytest.raises(ModelError, match="adapter_config.json cannot be read"):
        load_adapter(base, tmp_path)
    for content, says in (
        ('{"peft_type": "LORA"}', "an adapter of the peft library"),
        ('{"fibec_ray_peft": {"kind": "nothing"}}', "no such kind 'nothing'"),
        ('{"fibec_ray_peft": {"kind": "bitfit", "more": 1}}', "Extra inputs are not permitted"),
    ):
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(ModelError, match=says):
            load_adapter(base, tmp_path)
