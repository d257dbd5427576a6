"""Base weights, prepared once per node and memory-mapped by every actor.

`prepare` casts to the target dtype, writes safetensors and renames; random weights are drawn in parallel
(`random_weights.py`). `open_base` loads that folder in its stored dtype, which transformers keeps memory-mapped: all
processes of a node share one copy in the page cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fibec_ray import seeds
from fibec_ray.errors import ModelError
from fibec_ray.heads import beside_the_body, head_modules
from fibec_ray.models import base_cache
from fibec_ray.models.architecture import (
    attention_of,
    auto_class,
    cannot,
    config_of,
    first_of_several,
    locate,
    no_model,
    revision,
)
from fibec_ray.models.packaged import PACKAGED, gguf_model, gguf_tokenizer, is_gguf
from fibec_ray.models.random_weights import DRAWING, draw_into
from fibec_ray.models.settings import BackboneSettings, PretrainedSettings

__all__ = ["from_config", "load_tokenizer", "locate", "open_base", "prepare", "prepared_folder"]

FORMAT = 2
"""version of prepared folders; other versions are not read"""
NOT_OF_WEIGHTS = {
    "tokenizer", "processor", "attention", "dropout", "backend", "checkpointing", "adapter_dtype", "tf32",
}  # fmt: skip
"""Settings that prepared weights do not depend on."""


def prepare(spec: PretrainedSettings, seed: int, num_classes: int, cache_dir: Path) -> Path:
    """Return the folder with this backbone's weights in its dtype, and make it if it is missing or has changed.

    seed: of random weights (`init: random`, or a classification head that the checkpoint lacks). Safe to call
    concurrently. Raises ModelError if the weights are not available, or if other users could change them.
    """
    folder = prepared_folder(spec, seed, num_classes, cache_dir)
    base_cache.private(cache_dir)

    def make(part: Path) -> Sequence[str]:
        if spec.init == "random" and (head := _drawn_in_place(spec, seed, num_classes, part)) is not None:
            return head
        with seeds.seeded_third_party(seed, "backbone"):
            if spec.init == "random":
                model = from_config(spec, num_classes)
                new = beside_the_body(model)
            else:
                model, new = _from_pretrained(spec, num_classes)
        head = _head(spec, model, new)
        model.to(getattr(torch, spec.dtype)).save_pretrained(part)
        return head

    return base_cache.kept(folder, make)


def _drawn_in_place(spec: PretrainedSettings, seed: int, num_classes: int, part: Path) -> list[str] | None:
    """Draw random weights in parallel; paths of the head's modules. None: this architecture does not allow it."""
    try:
        with torch.device("meta"):
            model = from_config(spec, num_classes)
    except ModelError:  # wrong settings, or a model that needs values when it is built: `make` finds out which
        return None
    head = _head(spec, model, beside_the_body(model))
    return head if draw_into(part, model.to(getattr(torch, spec.dtype)), seed) else None


def _head(spec: PretrainedSettings, model: Any, new: Sequence[str]) -> list[str]:
    return head_modules(model, new) if spec.head == "model" else []


def prepared_folder(spec: PretrainedSettings, seed: int, num_classes: int, cache_dir: Path) -> Path:
    """The folder that `prepare` uses; it may not exist yet."""
    return cache_dir / f"base-{_identity(spec, seed, num_classes)}"


def open_base(spec: PretrainedSettings, folder: Path, device: str = "cpu", four_bits: bool = False) -> Any:
    """Open the frozen base from a prepared folder; weights stay memory-mapped. device: where it will compute.

    four_bits: quantise while reading (bitsandbytes' NF4, CUDA only).
    """
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    extra = {"quantization_config": _four_bits(spec)} if four_bits else {}
    model = auto_class(spec).from_pretrained(
        folder,
        dtype="auto",
        local_files_only=True,
        use_safetensors=True,
        attn_implementation=_attention(spec, stored, device),
        trust_remote_code=False,
        **extra,
    )
    return model.requires_grad_(False)


def from_config(spec: PretrainedSettings, num_classes: int, num_blocks: int | None = None, device: str = "cpu") -> Any:
    """Build the frozen base from its config, in its dtype, with new weights on torch's current device.

    The meta device needs no memory for weights. num_blocks: None: as in the config. device: device
    type whose attention it has. Raises ModelError.
    """
    config = config_of(spec, **_classes(spec, num_classes))
    if num_blocks is not None:
        config.num_hidden_layers = num_blocks
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_blocks]
    # Created in its own dtype: LLaMA-7B would need 27 GB in float32.
    config.architectures = config.architectures or first_of_several(spec, config)
    options = {"dtype": getattr(torch, spec.dtype), "attn_implementation": _attention(spec, config, device)}
    try:
        model = auto_class(spec).from_config(config, trust_remote_code=False, **options)
    except Exception as error:  # as in config_of
        raise ModelError(no_model(spec, error)) from error
    return model.requires_grad_(False)


def load_tokenizer(spec: BackboneSettings) -> Any:
    """Load the backbone's tokenizer, with right padding and a pad token. Raises ModelError."""
    name = spec.tokenizer or spec.name or "minilm"
    return _packaged_tokenizer(name) if name in PACKAGED else _read_tokenizer(spec)


@cache
def _packaged_tokenizer(name: str) -> Any:
    """Read once per process. Other tokenizers are read each time, because their files may have changed."""
    return _read_tokenizer(BackboneSettings(tokenizer=name))


def _read_tokenizer(spec: BackboneSettings) -> Any:
    from transformers import AutoTokenizer

    name = spec.tokenizer or spec.name or "minilm"
    source = locate(name)
    try:
        if is_gguf(name):
            tokenizer = gguf_tokenizer(name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision(spec, source), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(cannot("backbone.tokenizer", source, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(f"backbone.tokenizer: {source} has neither a pad nor an end-of-text token; choose another")
    tokenizer.padding_side = "right"
    return tokenizer


def _four_bits(spec: PretrainedSettings) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, spec.dtype)
    )


def _attention(spec: PretrainedSettings, config: Any, device: str) -> str:
    chosen = attention_of(spec, config)
    if (chosen, spec.dtype, device) != ("sdpa", "bfloat16", "cpu"):
        return chosen
    from fibec_ray.models import attention

    attention.register()
    return attention.IN_FLOAT32


def _identity(spec: PretrainedSettings, seed: int, num_classes: int) -> str:
    """Hash of everything that weights depend on. Seed and classes count only if weights depend on them."""
    drawn = spec.init == "random" or spec.head == "model"
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _weight_files(spec)]
    weights = spec.model_dump(exclude=NOT_OF_WEIGHTS)
    identity = [FORMAT, weights, seed if drawn else None, num_classes if spec.head == "model" else None, stamps]
    if spec.init == "random":
        identity.append(DRAWING)
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()


def _weight_files(spec: PretrainedSettings) -> list[Path]:
    """The files of a local checkpoint; none for the hub and for random weights."""
    if spec.init != "pretrained" or spec.name is None:
        return []
    source = Path(locate(spec.name))
    return sorted(source.glob("*.gguf" if is_gguf(spec.name) else "*.*")) if source.is_dir() else []


def _classes(spec: PretrainedSettings, num_classes: int) -> dict[str, Any]:
    return {"num_labels": num_classes} if spec.head == "model" else {}


def _from_pretrained(spec: PretrainedSettings, num_classes: int) -> tuple[Any, list[str]]:
    """The model, and the names of tensors that the checkpoint lacks or has for another number of classes."""
    config_of(spec)  # before anything is downloaded
    name = spec.name or "minilm"
    source = locate(name)
    try:
        if is_gguf(name):
            model, info = gguf_model(name, auto_class(spec), _classes(spec, num_classes))
        else:
            model, info = auto_class(spec).from_pretrained(
                source,
                revision=revision(spec, source),
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=spec.head == "model",
                **_classes(spec, num_classes),
            )
    except Exception as error:  # as in config_of
        raise ModelError(cannot("backbone.name", source, error)) from error
    refitted = [key for key, *_ in info["mismatched_keys"]]
    if body := [name for name in refitted if _is_body(name, model, spec)]:
        odd = ValueError(f"{body[0]} has another shape than its config says")
        raise ModelError(cannot("backbone.name", source, odd))
    lacking = sorted(info["missing_keys"])
    if body := [name for name in lacking if _is_body(name, model, spec)]:
        raise ModelError(
            f"backbone.name: the checkpoint {source} lacks weights for its config ({body[0]}); "
            "give one whose config.json and model.safetensors match"
        )
    if lacking and spec.head in ("masked_lm", "causal_lm"):
        raise ModelError(
            f"backbone.head: {spec.head} needs a language-model head, but the checkpoint {source} has none "
            f"({lacking[0]} is missing); use head: mean_pool, or a backbone with such a head"
        )
    return model, lacking + refitted


def _is_body(name: str, model: Any, spec: PretrainedSettings) -> bool:
    """True for weights that a checkpoint must have: all except heads and poolers, which may start at random."""
    inner = spec.head in ("mean_pool", "seq2seq") or name.startswith(f"{model.base_model_prefix}.")
    return inner and not name.removeprefix(f"{model.base_model_prefix}.").startswith("pooler.")
