"""Hidden states and layer scores use each block's own output, before any final norm, in each family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import row
from conftest import classes, shard_of
from image_models import CONFIGS as IMAGE_CONFIGS
from image_models import backbone as image_backbone
from image_models import batch as pictures
from image_models import model as image_model
from peft_models import FAMILIES, batch, stirred
from rotation import in_turn
from seq2seq_models import FAMILIES as SEQ2SEQ
from seq2seq_models import SHARD as PAIRS
from seq2seq_models import made as made_seq2seq
from torch import Tensor, nn

from fibec_ray.curvature.fisher import by_length
from fibec_ray.errors import ModelError
from fibec_ray.model_types import Batch, LaneBatch
from fibec_ray.models.backbone import prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.models.vision import as_places
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.prefix import Prefix
from fibec_ray.parts.peft.virtual import Prompt
from fibec_ray.parts.sharing.layer_scores import CHUNK, Noise, layer_sensitivity, relative_change

MORE: dict[str, dict[str, Any]] = {
    "xlnet": {"vocab_size": 50, "d_model": 32, "n_layer": 3, "n_head": 2, "d_inner": 64},
    "phi": FAMILIES["bert"],
    "phi3": {**FAMILIES["llama"], "pad_token_id": 1},
    "qwen3": {**FAMILIES["llama"], "head_dim": 16},
    "gemma": {**FAMILIES["llama"], "head_dim": 16},
    "electra": {**FAMILIES["bert"], "embedding_size": 16},
    "openai-gpt": FAMILIES["gpt2"],
    "flaubert": FAMILIES["xlm"],
    "hrm_text": {**FAMILIES["llama"], "num_layers_per_stack": 1, "pad_token_id": 1},
}
BLOCKS = {
    "bert": "encoder.layer", "roberta": "encoder.layer", "electra": "encoder.layer", "distilbert": "transformer.layer",
    "deberta-v2": "encoder.layer", "modernbert": "layers", "mpnet": "encoder.layer",
    "albert": "encoder.albert_layer_groups", "xlnet": "layer", "gpt2": "h", "openai-gpt": "h", "bloom": "h",
    "opt": "decoder.layers", "llama": "layers", "mistral": "layers", "qwen2": "layers", "qwen3": "layers",
    "phi": "layers", "phi3": "layers", "gemma": "layers",
}  # fmt: skip
"""Where a family keeps its blocks. ALBERT's one runs three times."""
LAST_NORMS = {"xlm": "layer_norm2", "flaubert": "layer_norm2"}
"""Families without modules for blocks: what ends each block. The model then zeroes the padding."""
STACKS = {"t5": "block", "mt5": "block", "umt5": "block", "bart": "layers", "pegasus": "layers"}
"""Where encoder and decoder keep their blocks."""
STAGES = {
    "vit": ["layers"], "deit": ["layers"], "dinov2": ["encoder.layer"],
    "swin": ["encoder.layers.0.blocks", "encoder.layers.1.blocks"],
    "swinv2": ["encoder.layers.0.blocks", "encoder.layers.1.blocks"],
    "convnext": ["encoder.stages.0.layers", "encoder.stages.1.layers"],
    "convnextv2": ["encoder.stages.0.layers", "encoder.stages.1.layers"],
}  # fmt: skip
"""Where an image model keeps the blocks of each stage."""
NORMED = ("gpt2", "bloom", "opt", "llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma", "modernbert")
"""Families with a norm after the last block."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def made(family: str, cache: Path, head: Any = "mean_pool", part: Peft | None = None, **more: Any) -> TorchModel:
    config = {"model_type": family, **(FAMILIES | MORE)[family]}
    spec = Backbone(init="random", config=config, tokenizer="minilm", head=head, **more)
    part = part or Lora(r=2, target_modules="all-linear")
    answers = classes(3, (7, 8, 9) if "_lm" in head else None)
    return stirred(TorchModel(ModelSpec(spec, part, answers, 0), prepare(spec, 0, 3, cache)))


def body_of(model: Any) -> Any:
    """The transformers model without its head."""
    base = model._base
    return getattr(base, base.base_model_prefix, base)


def hooked(model: TorchModel, family: str, work: Any) -> tuple[Any, list[Tensor]]:
    """Return the result of `work`, and the outputs of the blocks during it."""
    done, seen = watched(body_of(model).get_submodule((BLOCKS | LAST_NORMS)[family]), work)
    return done, [y.transpose(0, 1) for y in seen] if family == "xlnet" else seen


def watched(blocks: Iterable[nn.Module], work: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
    """Return the result of `work`, and copies of the modules' outputs during it."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        seen.append((out[0] if isinstance(out, tuple | list) else out).detach().clone())

    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        return work(), seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("family", in_turn([*BLOCKS], 5, "states of blocks"))
@torch.no_grad()
def test_states_are_the_blocks_own(family: str, cache: Path) -> None:
    model = made(family, cache)
    out, seen = hooked(model, family, lambda: model.forward(batch(), hidden=True))
    assert len(seen) == len(out.hidden) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(out.hidden, seen, strict=True))
    assert torch.equal(out.last, seen[-1]) == (family not in NORMED)
    real = batch().inputs["attention_mask"].unsqueeze(2)
    own = model.read()
    means = (out.last * real).sum(1) / real.sum(1)
    torch.testing.assert_close(out.scores, means @ own["head.weight"].T + own["head.bias"])


NOISE = Noise(2.0, 0.1, relative=True)


def scored(model: Any, shard: Any) -> Tensor:
    return layer_sensitivity(model, shard, torch.arange(shard.num_samples), NOISE, "diff_norm")


def assert_scores_of(scores: Tensor, seen: Sequence[Tensor], shard: Any) -> None:
    """Scores are computed from the blocks' outputs, first clean and then noisy, bit for bit."""
    (rows,) = by_length(shard, torch.arange(shard.num_samples), CHUNK)
    assert len(seen) == 2 * len(scores) and bool((scores > 0).all())
    compared = [NOISE.compared(states, shard.batch(rows)) for states in seen]
    clean, noisy = compared[: len(scores)], compared[len(scores) :]
    changes = [relative_change(before, after, "diff_norm") for before, after in zip(clean, noisy, strict=True)]
    assert torch.equal(scores, torch.stack(changes).mean(dim=1))


@pytest.mark.parametrize("family", in_turn([*BLOCKS, *LAST_NORMS], 4, "scores of text"))
def test_scores_are_of_the_blocks_own_states(family: str, cache: Path) -> None:
    model, shard = made(family, cache), shard_of([[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]], [0, 2, 1])
    scores, seen = hooked(model, family, lambda: scored(model, shard))
    assert len(scores) == 3
    assert_scores_of(scores, seen, shard)


@pytest.mark.parametrize("family", in_turn([*SEQ2SEQ], 1, "scores of pairs"))
def test_scores_are_of_the_blocks_own_states_in_encoder_and_decoder(family: str) -> None:
    model = made_seq2seq(family)
    stacks = (model.base.get_encoder(), model.base.get_decoder())
    blocks = [block for stack in stacks for block in stack.get_submodule(STACKS[family])]
    scores, seen = watched(blocks, lambda: scored(model, PAIRS))
    assert len(scores) == 5
    assert_scores_of(scores, seen, PAIRS)


class Pictures:
    """A shard of some pictures."""

    num_samples, lengths = 4, torch.zeros(4, dtype=torch.int64)

    def batch(self, rows: Tensor) -> Batch:
        every = pictures()
        return Batch({"features": every.inputs["features"][rows]}, every.labels[rows])


@pytest.mark.parametrize("family", in_turn([*IMAGE_CONFIGS], 2, "scores of images"))
def test_scores_are_of_the_blocks_own_states_in_image_models(family: str, cache: Path) -> None:
    model = image_model(image_backbone(family), cache)
    body = body_of(model)
    blocks = [block for stage in STAGES[family] for block in body.get_submodule(stage)]
    scores, seen = watched(blocks, lambda: scored(model, Pictures()))
    assert len(scores) == len(blocks)
    assert_scores_of(scores, [as_places(states) for states in seen], Pictures())


def test_states_of_blocks_that_are_not_found_are_refused(cache: Path) -> None:
    """HRM's two stacks run several times, in nested loops."""
    model = made("hrm_text", cache)
    with pytest.raises(ModelError, match=r"^backbone: hrm_text does not keep its blocks in a list.*such as fedavg$"):
        model.forward(batch(), hidden=True)
    assert model.forward(batch()).hidden == ()


@pytest.mark.parametrize("head", ["model", "causal_lm"])
@torch.no_grad()
def test_whatever_the_head(head: str, cache: Path) -> None:
    model = made("gpt2", cache, head)
    out, seen = hooked(model, "gpt2", lambda: model.forward(batch(), hidden=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(out.hidden, seen, strict=True))


@pytest.mark.parametrize("part", [Prompt(num_tokens=2), Prefix(num_tokens=2)], ids=["prompt", "prefix"])
@torch.no_grad()
def test_without_virtual_tokens(part: Peft, cache: Path) -> None:
    model = made("llama", cache, part=part)
    out, seen = hooked(model, "llama", lambda: model.forward(batch(), hidden=True))
    assert [states.shape for states in out.hidden] == [(3, 7, 32)] * 3
    assert all(torch.equal(ours, theirs[:, -7:]) for ours, theirs in zip(out.hidden, seen, strict=True))


@torch.no_grad()
def test_of_several_devices_at_once(cache: Path) -> None:
    model = made("llama", cache)
    lanes = [LaneBatch(model.read(), row(batch(), i)) for i in range(3)]
    together, _ = model.together(lanes, hidden=True)
    for lane, out in zip(lanes, together, strict=True):
        alone = model.forward(lane.batch, hidden=True)
        torch.testing.assert_close(out.last, alone.last)
        for ours, theirs in zip(out.hidden, alone.hidden, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("more", [{"checkpointing": True}, {"backend": "stream"}], ids=["checkpointing", "stream"])
def test_however_the_base_is_held_and_with_the_same_gradients(more: dict[str, Any], cache: Path) -> None:
    """Blocks that are computed again in the backward pass add nothing to what the forward pass gave."""
    found = []
    for model in (made("llama", cache), made("llama", cache, **more)):
        model.train(True)
        out, _ = model.per_sample_grads(batch(), hidden=True)
        names = [name for name in model.trainable if ".lora_" in name]
        value = sum(states.square().sum() for states in out.hidden)
        grads = model.grad(value, [model.trainable[name] for name in names])
        assert len(out.hidden) == 3
        found.append([*out.hidden, *grads])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, atol=1e-4, rtol=1e-4)
