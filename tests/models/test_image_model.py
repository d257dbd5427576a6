"""Image models: patches, hidden states, blocks, per-sample gradients, lanes and costs, on tiny random ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_VIT
from image_models import CONFIGS, SHAPE, backbone, batch, model, request
from torch.nn import functional as F

from fibec_ray.errors import ModelError
from fibec_ray.learning.lanes import Lanes
from fibec_ray.model_types import Batch
from fibec_ray.models.image_backbone import ImageBackbone
from fibec_ray.models.image_model import ImageModel

BLOCKS = {"vit": 2, "deit": 2, "dinov2": 2, "swin": 3, "swinv2": 3, "convnext": 3, "convnextv2": 3}


@pytest.mark.parametrize("head", ["model", "mean_pool"])
@pytest.mark.parametrize("model_type", CONFIGS)
def test_scores_are_those_of_transformers(model_type: str, head: str, tmp_path: Path) -> None:
    spec = backbone(model_type, head)
    spec.check()
    made, some = model(spec, tmp_path), batch()
    out = made.forward(some, hidden=True)
    with torch.no_grad():
        plain = made.base(pixel_values=some.inputs["features"])
    if head == "model":
        wanted = plain.logits
    else:
        states = plain.last_hidden_state
        places = states.flatten(2).mT if states.dim() == 4 else states
        wanted = made.head(places.mean(1))
    torch.testing.assert_close(out.scores, wanted)
    torch.testing.assert_close(out.losses, F.cross_entropy(wanted, some.labels, reduction="none"))
    assert made.num_layers == len(out.hidden) == BLOCKS[model_type]
    assert all(states.dim() == 3 and len(states) == 4 for states in (*out.hidden, out.last))


@pytest.mark.parametrize("model_type", CONFIGS)
def test_patch_embeddings_can_be_replaced(model_type: str, tmp_path: Path) -> None:
    made, some = model(backbone(model_type), tmp_path), batch()
    embeds = made.embed(some).detach().requires_grad_()
    assert embeds.dim() == 3 and len(embeds) == 4
    same, _ = made.per_sample_grads(some, embeds=embeds)
    (grad,) = made.grad(same.losses.sum(), [embeds])
    assert torch.equal(same.losses, made.forward(some).losses) and grad.abs().sum() > 0
    step = 1e-3 * grad / grad.norm()
    change = made.forward(some, embeds=embeds + step).losses.sum() - same.losses.sum()
    torch.testing.assert_close(change, (grad * step).sum(), rtol=0.1, atol=1e-4)
    assert torch.equal(made.forward(some).losses, same.losses)  # no hook is left


@pytest.mark.parametrize("model_type", CONFIGS)
def test_per_sample_gradients_are_those_of_one_sample_at_a_time(model_type: str, tmp_path: Path) -> None:
    made, some = model(backbone(model_type), tmp_path, {"kind": "lora", "target_modules": "all-linear"}), batch()
    names = list(made.trainable)
    out, caught = made.per_sample_grads(some, names)
    found = caught.gradients(made.grad(out.losses.sum(), caught.tensors))
    assert found.keys() == made.trainable.keys()
    for i in range(4):
        one = Batch({"features": some.inputs["features"][i : i + 1]}, some.labels[i : i + 1])
        wanted = torch.autograd.grad(made.forward(one).losses.sum(), list(made.trainable.values()), allow_unused=True)
        for name, value in zip(names, wanted, strict=True):
            value = torch.zeros_like(found[name][i]) if value is None else value
            torch.testing.assert_close(found[name][i], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("peft", ["lora", "bitfit", "full", "adapter"])
def test_per_sample_gradients_of_other_kinds_are_exact_or_refused(peft: str, tmp_path: Path) -> None:
    made, some = model(backbone("vit"), tmp_path, peft), batch()
    try:
        out, caught = made.per_sample_grads(some, list(made.trainable))
    except ModelError as error:
        assert peft == "full" and "its per-sample gradients are not known" in str(error)
        return
    grads = made.grad(out.losses.sum(), [*made.trainable.values(), *caught.tensors])
    found = caught.gradients(grads[len(made.trainable) :])
    for (name, whole), own in zip(zip(made.trainable, grads, strict=False), found.values(), strict=True):
        torch.testing.assert_close(found[name].sum(0), torch.zeros_like(own[0]) if whole is None else whole)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_blocks_are_numbered_through_all_stages(model_type: str, tmp_path: Path) -> None:
    made = model(backbone(model_type), tmp_path)
    layers = {name: made.layer_of(name) for name in made.trainable}
    assert {layer for layer in layers.values() if layer is not None} == set(range(BLOCKS[model_type]))
    assert {name for name, layer in layers.items() if layer is None} == {n for n in layers if not made.is_adapter(n)}
    if model_type == "swin":
        assert {layer for name, layer in layers.items() if ".layers.1.blocks.0." in name} == {1}
    if model_type == "convnext":
        assert {layer for name, layer in layers.items() if ".stages.1.layers.1." in name} == {2}


@pytest.mark.parametrize("model_type", ["vit", "swin", "convnext"])
def test_lanes_equal_one_device_at_a_time(model_type: str, tmp_path: Path) -> None:
    made = model(backbone(model_type), tmp_path)
    assert made.obstacle_to_lanes() is None
    batches = [batch(count, seed=count) for count in (3, 4, 2)]
    lanes = Lanes(made, 3)
    for scale, lane in enumerate(lanes.models):
        for value in lane.trainable.values():
            value.data.mul_(1 + 0.3 * scale)

    def work(lane: Any, own: Batch) -> Any:
        embeds = lane.embed(own).detach().requires_grad_()
        out, caught = lane.per_sample_grads(own, list(lane.trainable), embeds=embeds, hidden=True)
        grads = lane.grad(out.losses.sum(), [embeds, *caught.tensors])
        return out, grads[0], caught.gradients(grads[1:])

    found = lanes.run([lambda lane=lane, own=own: work(lane, own) for lane, own in zip(lanes.models, batches)])  # noqa: B905
    for lane, own, (out, noise, single) in zip(lanes.models, batches, found, strict=True):
        made.load(lane.trainable)
        alone, alone_noise, alone_single = work(made, own)
        torch.testing.assert_close(out.losses, alone.losses)
        torch.testing.assert_close(noise, alone_noise)
        for name, value in alone_single.items():
            torch.testing.assert_close(single[name], value)
        for one, other in zip(out.hidden, alone.hidden, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_the_cost_is_counted_on_the_architecture(model_type: str, tmp_path: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from fibec_ray.models.backbone import from_config

    spec = backbone(model_type, attention="eager")
    made, plain = model(spec, tmp_path), from_config(spec, 5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain.eval()(pixel_values=torch.zeros(1, *SHAPE))
    work = made.cost(batch(), graph=False)
    assert work.num_tokens == 4
    assert work.flops == 4 * counter.get_total_flops()
    assert made.cost(batch(), graph=True).flops == 2 * work.flops


@pytest.mark.parametrize("model_type", ["vit", "swin", "convnext"])
def test_the_outline_has_the_models_tensors(model_type: str, tmp_path: Path) -> None:
    from fibec_ray.data.dense import DenseForm

    spec = backbone(model_type)
    outline: Any = spec.outline(request(), DenseForm(SHAPE, is_real=False))
    made = model(spec, tmp_path)
    assert {n: v.shape for n, v in outline.trainable.items()} == {n: v.shape for n, v in made.trainable.items()}
    assert outline.num_layers == made.num_layers and outline.blocks_are_alike == (model_type == "vit")
    out = outline.within(lambda: outline.forward(outline.batch(2, 1), hidden=True))
    assert [states.shape[1:] for states in out.hidden] == [
        s.shape[1:] for s in made.forward(batch(), hidden=True).hidden
    ]
    assert outline.pass_flops(3, 1) == made.cost(batch(3), graph=False).flops


@pytest.mark.parametrize(
    ("config", "head", "message"),
    [
        ({"model_type": "bert"}, "model", "bert expects input_ids, not images; supported are image models"),
        ({"model_type": "resnet"}, "model", "resnet does not keep its blocks in a list; supported are image models"),
        ({"model_type": "mobilenet_v2"}, "model", "has neither num_hidden_layers nor depths in its config"),
        ({"model_type": "clip"}, "model", "consists of several models"),
        (
            {"model_type": "clip_vision_model"},
            "model",
            "no classifier for clip_vision_model; set backbone.head=mean_pool",
        ),
        (TINY_VIT | {"patch_size": 0}, "model", "backbone.config gives no model"),
    ],
)
def test_other_architectures_are_refused(config: dict[str, Any], head: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ImageBackbone.model_validate({"init": "random", "config": config, "head": head}).check()


def test_images_of_another_size_are_refused() -> None:
    from fibec_ray.models.vision import check_size

    with pytest.raises(ModelError, match="vit cannot compute an image of 20 x 20 pixels .* check the sizes"):
        check_size(backbone("vit"), (3, 20, 20))


def test_text_backbones_name_the_way_to_read_images() -> None:
    from fibec_ray.models.spec import Backbone

    spec = Backbone(init="random", config=dict(TINY_VIT), tokenizer="minilm")
    with pytest.raises(ModelError, match="vit expects pixel_values, not text; set backbone.kind=image"):
        spec.check()


def test_checkpointing_and_bfloat16_compute_the_same(tmp_path: Path) -> None:
    some = batch()
    plain: ImageModel = model(backbone("vit", "mean_pool"), tmp_path)
    recomputed: ImageModel = model(backbone("vit", "mean_pool", checkpointing=True), tmp_path)
    half: ImageModel = model(backbone("vit", "mean_pool", dtype="bfloat16"), tmp_path)
    for made in (plain, recomputed, half):
        made.train(True)
    grads = [
        torch.autograd.grad(each.forward(some).losses.sum(), list(each.trainable.values()))
        for each in (plain, recomputed)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(half.forward(some).losses, plain.forward(some).losses, rtol=0.1, atol=0.1)
