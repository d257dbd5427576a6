"""Random weights follow transformers' rules, and depend on nothing but the seed and the module's path."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BERT, TINY_CONVNEXT, TINY_LLAMA, TINY_SWIN, TINY_VIT
from peft_models import FAMILIES
from safetensors.torch import load_file
from torch import Tensor

from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import from_config, open_base, prepare
from fibec_ray.models.image_backbone import ImageBackbone
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.models.random_weights import draw_into
from fibec_ray.models.spec import Backbone
from fibec_ray.models.weight_files import lay_out
from fibec_ray.tensors import Tensors

quiet_libraries()

T5 = {"model_type": "t5", "vocab_size": 50, "d_model": 16, "num_layers": 2, "d_kv": 8, "d_ff": 16, "num_heads": 2}
IMAGES = {config["model_type"]: config for config in (TINY_VIT, TINY_SWIN, TINY_CONVNEXT)}
RENAMED = ("vit", "swin")
"""Families whose tensors have other names in files."""


def backbone(config: dict[str, Any], head: str = "mean_pool", **more: Any) -> Any:
    values = {"init": "random", "config": config, "head": head, **more}
    if "image_size" in config:
        return ImageBackbone.model_validate(values)
    return Backbone.model_validate({**values, "tokenizer": "minilm"})


def drawn(
    spec: Any, folder: Path, seed: int = 0, num_threads: int = 2, num_blocks: int | None = None
) -> Tensors | None:
    """The tensors in the files; None if they cannot be drawn in place."""
    folder.mkdir()
    with torch.device("meta"):
        model = from_config(spec, 3, num_blocks)
    return load_file(folder / "model.safetensors") if draw_into(folder, model, seed, num_threads) else None


CASES: dict[str, tuple[dict[str, Any], str]] = {
    **{
        family: ({"model_type": family, "pad_token_id": 1, **config}, "mean_pool")
        for family, config in FAMILIES.items()
    },
    **{family: (config, "mean_pool") for family, config in IMAGES.items()},
    "a classifier": ({**TINY_BERT, "vocab_size": 50}, "model"),
    "tied embeddings": ({**TINY_BERT, "vocab_size": 50}, "masked_lm"),
    "a head of its own": (TINY_LLAMA, "causal_lm"),
    "t5": ({**T5, "pad_token_id": 0, "decoder_start_token_id": 0}, "seq2seq"),
}


@pytest.mark.parametrize("case", CASES)
def test_values_are_distributed_as_transformers_draws_them(case: str, tmp_path: Path) -> None:
    """Constants are equal, and so are the deviations of drawn tensors, within six standard errors."""
    spec = backbone(*CASES[case])
    found = drawn(spec, tmp_path / "new")
    assert (found is None) == (case in RENAMED)
    from_config(spec, 3).save_pretrained(tmp_path / "old")
    assert found is None or _files(tmp_path / "new") == _files(tmp_path / "old")
    for name, expected in load_file(tmp_path / "old" / "model.safetensors").items() if found else ():
        _compare(name, found[name], expected)  # type: ignore[index]


def _compare(name: str, value: Tensor, expected: Tensor) -> None:
    assert (value.dtype, value.shape) == (expected.dtype, expected.shape), name
    if expected.is_floating_point() and expected.numel() > 2 and float(expected.std()) > 0:
        ratio = float(value.std() / expected.std())
        assert abs(ratio - 1) < 6 / (2 * value.numel()) ** 0.5 and not torch.equal(value, expected), name
        assert int((value == 0).sum()) == int((expected == 0).sum()), f"{name}: rows of padding are zero"
    else:
        assert torch.equal(value, expected), name


def _files(folder: Path) -> dict[str, Any]:
    """Names of files; of JSON the content, of weights the names of their tensors."""
    return {
        path.name: path.read_text() if path.suffix == ".json" else load_file(path).keys() for path in folder.iterdir()
    }


def test_the_number_of_threads_does_not_matter(tmp_path: Path) -> None:
    spec = backbone(TINY_LLAMA, "causal_lm", dtype="bfloat16")
    files = []
    for num_threads in (1, 2, 7):
        drawn(spec, tmp_path / str(num_threads), 3, num_threads)
        files.append((tmp_path / str(num_threads) / "model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]


def test_a_block_has_the_same_weights_whatever_the_depth(tmp_path: Path) -> None:
    spec = backbone(TINY_LLAMA, "causal_lm")
    whole, first = drawn(spec, tmp_path / "a"), drawn(spec, tmp_path / "b", num_blocks=1)
    assert whole is not None and first is not None and len(first) < len(whole)
    assert all(torch.equal(whole[name], value) for name, value in first.items())
    other = drawn(spec, tmp_path / "c", seed=1)
    assert other is not None and not torch.equal(other["lm_head.weight"], whole["lm_head.weight"])
    one, two = (whole[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(2))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_bfloat16_values_are_those_of_float32_rounded(family: str, tmp_path: Path) -> None:
    config = {"model_type": family, "pad_token_id": 1, **FAMILIES[family]}
    wide, narrow = (drawn(backbone(config, dtype=dtype), tmp_path / dtype) for dtype in ("float32", "bfloat16"))
    assert wide is not None and narrow is not None
    assert all(torch.equal(narrow[name], value.bfloat16()) for name, value in wide.items())


def test_large_bases_are_written_in_shards_that_transformers_reads(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(12).view(3, 4),
        "b": torch.rand(5).bfloat16(),
        "c": torch.tensor(3),
        "d": torch.ones(0),
    }
    for name, value in lay_out(tmp_path, {n: t.to("meta") for n, t in tensors.items()}, shard_bytes=100).items():
        value.copy_(tensors[name])
    shards = [load_file(path) for path in sorted(tmp_path.glob("model-0000?-of-00002.safetensors"))]
    assert [sorted(shard) for shard in shards] == [["a"], ["b", "c", "d"]]
    assert all(torch.equal(shard[name], tensors[name]) for shard in shards for name in shard)


def test_a_base_in_shards_opens_as_one(tmp_path: Path) -> None:
    spec = backbone(TINY_LLAMA, "causal_lm")
    one, many = drawn(spec, tmp_path / "one"), tmp_path / "many"
    many.mkdir()
    with torch.device("meta"):
        model = from_config(spec, 3)
    assert draw_into(many, model, 0, shard_bytes=20_000) and len(list(many.glob("*.safetensors"))) > 2
    opened = dict(open_base(spec, many).named_parameters())
    assert one is not None and opened.keys() == one.keys()
    assert all(torch.equal(opened[name], value) for name, value in one.items())


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit of the size of files stands for the full disk: space is taken before anything is drawn."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ModelError, match="base weights cannot be written .*; free some space there, or set FIBEC_"):
            prepare(backbone(TINY_LLAMA, "causal_lm"), 0, 3, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
