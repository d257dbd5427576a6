"""All backends give the same results, bit for bit where the products are the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BERT, TINY_LLAMA, classes, shard_of
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import prepare
from fibec_ray.models.backends import Room, choose
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.tensors import Tensors

GB = 10**9


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """DeepSpeed's process group and variables are the process's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def made(folder: Path, backend: str, family: str = "llama", dtype: str = "bfloat16", **more: Any) -> TorchModel:
    config, head = (TINY_LLAMA, "causal_lm") if family == "llama" else (TINY_BERT, "mean_pool")
    spec = Backbone(init="random", config=config, tokenizer="minilm", head=head, dtype=dtype, backend=backend, **more)  # type: ignore[arg-type]
    words = [5, 6, 7] if head == "causal_lm" else None
    model = TorchModel(ModelSpec(spec, Lora(r=4), classes(3, words), 1), prepare(spec, 0, 3, folder))
    rng = torch.Generator().manual_seed(2)
    model.load({n: 0.1 * torch.randn(p.shape, generator=rng) for n, p in model.trainable.items()})
    return model


SHARD = shard_of([[5, 6, 7, 8], [9, 8, 7], [4, 4, 4, 4, 4], [8, 5]], [0, 1, 2, 1])


def found(model: TorchModel) -> tuple[Any, ...]:
    """Losses and gradients of a step, the Fisher information over all labels (several backward passes), and what blocks
    give out."""
    model.train(True)
    out, _ = model.per_sample_grads(SHARD.batch(torch.arange(4)))
    grads = model.grad(out.losses.mean(), list(model.trainable.values()))
    names = [name for name in model.trainable if model.is_adapter(name)]
    scan = FisherScan(model, SHARD, torch.arange(4).split(2), names, torch.Generator()).read("expected")
    with torch.no_grad():
        states = model.forward(SHARD.batch(torch.arange(4)), hidden=True)
    return out.losses.detach(), grads, scan.traces, scan.diagonal, states.hidden, states.last


EACH = pytest.mark.parametrize("family", ["llama", "bert"])


@EACH
@pytest.mark.parametrize(
    ("backend", "more"),
    [
        ("deepspeed", {}),
        ("stream", {}),
        ("plain", {"checkpointing": True}),
        ("stream", {"checkpointing": True}),
        ("deepspeed", {"checkpointing": True}),
    ],
)
def test_every_backend_computes_what_plain_does(
    family: str, backend: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """In bfloat16, where all of them use PyTorch's products. In BERT's blocks DeepSpeed's hooks change the order in
    which the gradients of an input's four uses are added, and so the last of bfloat16's eight bits."""
    plain, other = found(made(tmp_path, "plain", family)), found(made(tmp_path, backend, family, **more))
    for expected, value in zip(_flat(plain), _flat(other), strict=True):
        if (backend, family) == ("deepspeed", "bert"):
            assert float((expected - value).norm()) <= 0.02 * float(expected.norm())
        else:
            assert torch.equal(expected, value)


@pytest.mark.parametrize("backend", ["deepspeed", "stream"])
def test_in_float32_too_but_for_the_kernel(backend: str, tmp_path: Path) -> None:
    plain = found(made(tmp_path, "plain", dtype="float32"))
    for expected, value in zip(_flat(plain), _flat(found(made(tmp_path, backend, dtype="float32"))), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-3)


def _flat(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in (values.values() if isinstance(values, dict) else values) for tensor in _flat(value)]


def test_deepspeed_holds_the_base_and_nothing_else(tmp_path: Path) -> None:
    model = made(tmp_path, "deepspeed")
    big = [p for n, p in model.peft_model.named_parameters() if "proj.base_layer.weight" in n]
    assert big and all(hasattr(p, "ds_id") for p in big)
    assert not any(hasattr(p, "ds_id") for p in model.trainable.values())
    assert not list(Path("/dev/shm").glob("deepspeed*")), "a file in shared memory was left behind"


def test_eight_devices_on_one_engine_leave_nothing_of_each_other(tmp_path: Path) -> None:
    """Each trains three steps of AdamW from the same start; in another order each ends with the same bits."""
    model = made(tmp_path, "deepspeed")
    start = model.read()

    def trained(device: int) -> Tensors:
        model.load(start)
        optimizer = torch.optim.AdamW(model.trainable.values(), lr=0.01)
        for _ in range(3):
            out, _ = model.per_sample_grads(SHARD.batch(torch.tensor([device % 4, (device + device // 4 + 1) % 4])))
            for p, grad in zip(
                model.trainable.values(), model.grad(out.losses.mean(), [*model.trainable.values()]), strict=True
            ):
                p.grad = grad
            optimizer.step()
        return model.read()

    first = [trained(device) for device in range(8)]
    again = {device: trained(device) for device in (5, 0, 7, 3, 2, 6, 1, 4)}
    for device, values in enumerate(first):
        assert all(torch.equal(again[device][name], value) for name, value in values.items())
    assert not all(torch.equal(first[0][name], value) for name, value in first[1].items())


def test_streamed_weights_are_no_parameters_that_a_move_would_take_along(tmp_path: Path) -> None:
    model = made(tmp_path, "stream")
    left = {name for name, _ in model.peft_model.named_parameters()}
    assert not any("proj.base_layer.weight" in name for name in left) and any("embed_tokens" in n for n in left)
    assert model.work.flops == 0 and found(model) and model.work.flops > 0


# --- which one


@pytest.mark.parametrize(
    ("size", "gpu", "host", "expected"),
    [
        (13.5, None, 20, "plain"),
        (13.5, 24, 32, "plain"),
        (13.5, 16, 32, "deepspeed"),
        (13.5, 8, 32, "deepspeed"),
        (13.5, 8, 16, "stream"),
        (0.7, 8, 16, "plain"),
    ],
)
def test_auto_goes_by_what_has_room(size: float, gpu: float | None, host: float, expected: str) -> None:
    """13.5 GB: LLaMA-7B in bfloat16; 0.7: RoBERTa-large."""
    room = Room(None if gpu is None else int(gpu * GB), int(host * GB))
    backend, reason = choose("auto", int(size * GB), room)
    assert backend == expected and reason.startswith("auto: ") and f"{size:.1f} GB" in reason


def test_auto_takes_plain_for_a_base_that_fits_even_a_small_gpu() -> None:
    """On a GPU, a base of 90 MB with a share of 1.4 GB once got DeepSpeed. beside: what a plan adds to the base."""
    for gpu in (1.4 * GB, 24 * GB, 139 * GB):
        for beside in (None, 0, int(0.1 * GB), int(0.5 * gpu)):
            room = Room(int(gpu), 125 * GB, beside=beside)
            assert choose("auto", 90_000_000, room).backend == "plain"
            assert choose("auto", room.first, room).backend == "plain"
            assert choose("auto", room.first + 1, room).backend in ("deepspeed", "stream")


@pytest.mark.parametrize(
    ("size", "gpus", "expected", "why"),
    [
        (13.5, [24, 24], "plain", "the other GPUs are idle, fleet.gpus_per_actor=1 is enough"),
        (13.5, [12, 12], "spread", "the GPU 12.0 GB free, all 2 of them 24.0"),
        (13.5, [8, 8], "stream", "it fits neither the GPU nor, as a copy, the host's memory"),
        (13.5, [8, 8, 8], "spread", "all 3 of them 24.0"),
    ],
)
def test_auto_spreads_what_one_gpu_has_no_room_for(size: float, gpus: list[int], expected: str, why: str) -> None:
    """3 GB of the first and 1 of each other stay free."""
    room = Room(gpus[0] * GB, 8 * GB, tuple(gpu * GB for gpu in gpus[1:]))
    backend, reason = choose("auto", int(size * GB), room)
    assert backend == expected and why in reason


def test_spread_is_refused_where_all_gpus_together_have_no_room() -> None:
    with pytest.raises(
        ModelError,
        match=r"spread needs 13.5 GB for the base, but this process's GPUs \(2\) have 12.0 GB for it; raise fl",
    ):
        choose("spread", int(13.5 * GB), Room(8 * GB, 64 * GB, (8 * GB,)))


def test_what_cannot_be_had_is_refused_with_what_can() -> None:
    with pytest.raises(
        ModelError, match=r"needs 17.6 GB of host memory for a base of 13.5 GB, but this node has 8.0 GB free"
    ):
        choose("deepspeed", int(13.5 * GB), Room(None, 8 * GB))
    with pytest.raises(ModelError, match="qlora needs a CUDA device"):
        choose("qlora", GB, Room(None, 8 * GB))
