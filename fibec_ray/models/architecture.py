"""What a backbone's architecture is and supports, from its config alone."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

from fibec_ray.blocks import has_decoder, has_stages
from fibec_ray.errors import ModelError
from fibec_ray.models.lm_head import changed_by
from fibec_ray.models.packaged import PACKAGED, folder_of, gguf_config, is_gguf
from fibec_ray.models.settings import PretrainedSettings

SEQ2SEQ = ("t5", "mt5", "umt5", "bart", "pegasus")
"""Supported encoder-decoders, by transformers' `model_type`."""
SUPPORTED = (
    "supported are text encoders (bert, roberta, deberta-v2, modernbert, ...), decoders (llama, qwen2, gpt2, opt, ...) "
    f"and, with backbone.head=seq2seq for tasks with responses, encoder-decoders ({', '.join(SEQ2SEQ)}); choose one of "
    "these"
)
IMAGE_MODELS = "supported are image models (vit, deit, swin, convnext, dinov2, ...); choose one of these"
PIXELS = "pixel_values"
"""transformers' name of the images that a model reads"""
TAKEN = ("input_ids", "attention_mask", "inputs_embeds")
"""Inputs that a model must accept."""
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Settings of mixture-of-experts models. They are rejected, because the plan cannot count their operations."""


def config_of(spec: PretrainedSettings, **extra: Any) -> Any:
    """transformers' config of a supported backbone. Raises ModelError."""
    from transformers import AutoConfig

    name = spec.name or "minilm"
    source = "" if spec.config is not None else locate(name)
    try:
        if spec.config is not None:
            config = AutoConfig.for_model(**{**spec.config, **extra})
        elif is_gguf(name):
            config = gguf_config(name)
            config.update(extra)
        else:
            version = revision(spec, source)
            config = AutoConfig.from_pretrained(source, revision=version, trust_remote_code=False, **extra)
    except Exception as error:  # the errors of transformers, huggingface_hub and safetensors have no common root
        message = no_model(spec, error) if spec.config is not None else cannot("backbone.name", source, error)
        raise ModelError(message) from error
    if spec.reads_images and (reason := _no_image_model(config)):
        raise ModelError(f"backbone: {config.model_type} {reason}; {IMAGE_MODELS}")
    if not spec.reads_images and (reason := _not_supported(config, spec.head)):
        raise ModelError(f"backbone: {config.model_type} {reason}; {SUPPORTED}")
    if has_decoder(config) and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id  # as in T5's checkpoints
        if config.pad_token_id is None:
            raise ModelError(
                f"backbone: {config.model_type} has no token that its decoder starts with; set "
                "backbone.config.decoder_start_token_id"
            )
    return config


def check_supported(spec: PretrainedSettings) -> None:
    """Raise ModelError for models other than text encoders and decoders, and for settings that do not fit the model."""
    config = config_of(spec)
    if spec.head == "model" and getattr(config, "summary_type", None) == "last":
        raise ModelError(
            f"backbone.head: the classifier of {config.model_type} reads the last position, which is padding in "
            "shorter samples; set backbone.head=mean_pool"
        )
    attention_of(spec, config)


def check_causal(spec: PretrainedSettings) -> None:
    """Raise ModelError for encoders, whose tokens attend to later ones, and for models that change logits after the
    head.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    config = config_of(spec)
    kind, decodes = config.model_type, getattr(config, "is_decoder", False)
    if kind not in DECODERS or (kind in ENCODERS and not decodes):
        raise ModelError(
            f"backbone: {kind} is not a causal language model: its tokens attend to later ones; choose a decoder "
            "such as llama, mistral, qwen2, gpt2 or opt (backbone=tiny-llama needs no network)"
        )
    if name := changed_by(config):
        raise ModelError(
            f"backbone: {kind} changes its logits after the head ({name}), which is not supported; choose another"
        )


def attention_of(spec: PretrainedSettings, config: Any) -> str:
    """The attention implementation, "sdpa" or "eager". Raises ModelError for an sdpa that the architecture lacks."""
    model = model_class(auto_class(spec), config)
    has_sdpa = model is None or bool(getattr(model, "_supports_sdpa", False))
    if spec.attention == "sdpa" and not has_sdpa:
        raise ModelError(
            f"backbone.attention: transformers has no sdpa for {config.model_type}; set backbone.attention=eager, or "
            "auto"
        )
    return "sdpa" if has_sdpa and spec.attention != "eager" else "eager"


def notes(spec: PretrainedSettings, num_classes: int) -> list[str]:
    """What the user should know about this backbone on a task."""
    config, found = config_of(spec), []
    if spec.attention == "auto" and attention_of(spec, config) == "eager":
        found.append(f"transformers has no sdpa for {config.model_type}: backbone.attention=auto uses eager")
    fine_tuned = any(
        name.endswith(spec.auto_classes["model"][len("AutoModel") :]) for name in config.architectures or ()
    )
    if (spec.head, spec.init) == ("model", "pretrained") and fine_tuned and config.num_labels != num_classes:
        found.append(
            f"the checkpoint has {config.num_labels} classes, but the task has {num_classes}: its classification "
            "head starts at random"
        )
    return found


def inputs_of(spec: PretrainedSettings) -> tuple[set[str], Any]:
    """Names of the backbone's forward arguments, common to it with and without its head; and its config. Raises
    ModelError.
    """
    from transformers import AutoModel

    config = config_of(spec)
    found = [model_class(auto, config) for auto in (auto_class(spec), AutoModel)]
    taken = [set(inspect.signature(each.forward).parameters) for each in found if each is not None]
    return set.intersection(*taken) if taken else set(), config


def auto_class(spec: PretrainedSettings) -> Any:
    """transformers' Auto class for the backbone's head."""
    import transformers

    return getattr(transformers, spec.auto_classes[spec.head])


def first_of_several(spec: PretrainedSettings, config: Any) -> list[str] | None:
    """Name of the model's first class, if the Auto class has several for this architecture; None for one."""
    try:
        found = auto_class(spec)._model_mapping[type(config)]
    except KeyError:
        return None
    return [found[0].__name__] if isinstance(found, tuple) else None


def locate(name: str) -> str:
    """'minilm' or 'smollm2' -> the folder of the packaged model; a hub id or local folder unchanged."""
    return str(folder_of(name)) if name in PACKAGED else name


def hub_id(name: str) -> str:
    """'minilm' or 'smollm2' -> the hub id of the packaged model; any other name unchanged."""
    return PACKAGED[name].hub if name in PACKAGED else name


def revision(spec: PretrainedSettings, source: str) -> str | None:
    """The hub revision to load; None for a local folder."""
    return None if Path(source).exists() else spec.revision


def cannot(where: str, source: str, error: Exception) -> str:
    """Message for a source that cannot be loaded."""
    return (
        f"{where}: cannot load '{source}' ({reason_of(error)}); give a local folder with config.json and "
        "model.safetensors, or use name: minilm, which needs no network"
    )


def no_model(spec: PretrainedSettings, error: Exception) -> str:
    """Message for a config that gives no model."""
    return (
        f"backbone.config gives no model for head: {spec.head} ({reason_of(error)}); check its values, "
        "and that its model_type has this head"
    )


def reason_of(error: Exception) -> str:
    """The error in one short line; some of these errors list every known model."""
    return textwrap.shorten(str(error), 240, placeholder=" ...") or type(error).__name__


def _not_supported(config: Any, head: str) -> str:
    """Why a model is not supported, such as 'is an encoder-decoder'; '' if it is."""
    from transformers import AutoModel

    if has_decoder(config) and (head != "seq2seq" or config.model_type not in SEQ2SEQ):
        return "is an encoder-decoder" + (" of another family" if head == "seq2seq" else "")
    if head == "seq2seq" and not has_decoder(config):
        return "is not an encoder-decoder, and backbone.head is seq2seq"
    if config.sub_configs and not hasattr(config, "hidden_size"):
        return f"consists of several models ({', '.join(sorted(config.sub_configs))})"
    model = model_class(AutoModel, config)
    if model is None:
        return "has no base model in transformers"
    if model.main_input_name != "input_ids":
        images = "; set backbone.kind=image for a task with images" if model.main_input_name == PIXELS else ""
        return f"expects {model.main_input_name}, not text{images}"
    takes = inspect.signature(model.forward).parameters
    if "decoder_input_ids" in takes and not has_decoder(config):
        return "is an encoder-decoder"
    missing = [name for name in TAKEN if name not in takes]
    if missing:
        return f"does not take {missing[0]}"
    if any(getattr(config, name, None) not in (None, 0, 1) for name in EXPERTS):
        return "is a mixture of experts"
    unknown = [name for name in SIZES if not isinstance(getattr(config, name, None), int)]
    return f"has no {unknown[0]} in its config" if unknown else ""


def _no_image_model(config: Any) -> str:
    """Why a model does not read images alone, such as 'reads text'; '' if it does."""
    from transformers import AutoModel

    if config.sub_configs and not hasattr(config, "hidden_size") and not has_stages(config):
        return f"consists of several models ({', '.join(sorted(config.sub_configs))})"
    model = model_class(AutoModel, config)
    if model is None:
        return "has no base model in transformers"
    if model.main_input_name != PIXELS:
        return f"expects {model.main_input_name}, not images"
    needed = [
        name
        for name, given in inspect.signature(model.forward).parameters.items()
        if given.default is inspect.Parameter.empty and given.kind is given.POSITIONAL_OR_KEYWORD
    ]
    if beside := [name for name in needed if name not in ("self", PIXELS)]:
        return f"needs {beside[0]} beside images"
    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder-decoder"
    counted = has_stages(config) or isinstance(getattr(config, "num_hidden_layers", None), int)
    return "" if counted else "has neither num_hidden_layers nor depths in its config"


def model_class(auto: Any, config: Any) -> Any:
    """The model's class; None if the family has no such class."""
    try:
        found = auto._model_mapping[type(config)]
    except KeyError:
        return None
    return found[0] if isinstance(found, tuple) else found
