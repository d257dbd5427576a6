"""What is no text encoder or decoder is refused in one line, whatever the head, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import TINY_BERT, TINY_LLAMA, make_tiny

from fibec_ray.config.load import check
from fibec_ray.errors import ModelError
from fibec_ray.models.architecture import attention_of, check_supported, config_of, notes
from fibec_ray.models.backbone import from_config, open_base, prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.runs.simulation import simulate

SEQ2SEQ = {"vocab_size": 50, "d_model": 16, "num_layers": 1, "encoder_layers": 1, "decoder_layers": 1}
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "t5": ({**SEQ2SEQ, "d_kv": 8, "d_ff": 16}, "is an encoder-decoder"),
    "t5 that says it is none": ({"model_type": "t5", **SEQ2SEQ, "is_encoder_decoder": False}, "is an encoder-decoder"),
    "mbart": (SEQ2SEQ, "is an encoder-decoder"),
    "pegasus": (SEQ2SEQ, "is an encoder-decoder"),
    "whisper": (SEQ2SEQ, "is an encoder-decoder"),
    "vit": ({"hidden_size": 16}, "expects pixel_values, not text"),
    "deit": ({"hidden_size": 16}, "expects pixel_values, not text"),
    "wav2vec2": ({"hidden_size": 16}, "expects input_values, not text"),
    "clip": ({}, r"consists of several models \(text_config, vision_config\)"),
    "llava": ({}, "consists of several models"),
    "perceiver": ({}, "expects inputs, not text"),
    "fnet": ({"vocab_size": 50, "hidden_size": 16}, "does not take attention_mask"),
    "canine": ({"hidden_size": 16}, "has no vocab_size in its config"),
    "mixtral": ({"vocab_size": 50, "hidden_size": 16, "num_local_experts": 2}, "is a mixture of experts"),
    "olmoe": ({"vocab_size": 50, "hidden_size": 16, "num_experts": 4}, "is a mixture of experts"),
}
HEADS = ("mean_pool", "model", "masked_lm", "causal_lm")


def random(config: dict[str, Any], **more: Any) -> Backbone:
    return Backbone(init="random", config=config, tokenizer="minilm", **more)


@pytest.mark.parametrize("kind", UNSUPPORTED)
@pytest.mark.parametrize("head", HEADS)
def test_what_is_supported_is_said_of_a_config(kind: str, head: Any) -> None:
    config, reason = UNSUPPORTED[kind]
    says = rf"^backbone: {kind.split()[0]} {reason}.*; supported are text encoders \(bert, .*choose one of these$"
    with pytest.raises(ModelError, match=says):
        check_supported(random({"model_type": kind, **config}, head=head))


@pytest.mark.parametrize("kind", ["bart", "vit"])
def test_and_of_a_folder_by_name(kind: str, tmp_path: Path) -> None:
    transformers.AutoConfig.for_model(kind).save_pretrained(tmp_path / "there")
    with pytest.raises(ModelError, match=f"^backbone: {kind} .*supported are text encoders"):
        prepare(Backbone(name=str(tmp_path / "there")), 0, 2, tmp_path / "cache")
    settings = make_tiny(backbone={"init": "pretrained", "config": None, "name": str(tmp_path / "there")})
    with pytest.raises(ModelError, match=f"^backbone: {kind} .*supported are text encoders"):
        simulate(check(settings, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_classifier_that_reads_the_padding_is_refused() -> None:
    config = {"model_type": "xlnet", "vocab_size": 50, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    with pytest.raises(ModelError, match=r"classifier of xlnet reads the last position.*; set backbone.head=mean_pool"):
        check_supported(random(config, head="model"))
    check_supported(random(config, head="mean_pool"))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "xmod", "languages": ["en_XX"]}, "Input language unknown"),
        ({"model_type": "nystromformer", "num_landmarks": 4, "segment_means_seq_len": 64}, "Attempting to broadcast"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_model_that_cannot_compute_a_text_is_refused_before_the_run(
    config: dict[str, Any], reason: str, tmp_path: Path, caplog: Any
) -> None:
    method = {"name": "fedavg", "peft": {"kind": "lora", "target_modules": "all-linear"}}
    settings = make_tiny(method, backbone={"config": {**TINY_BERT, **config}, "head": "mean_pool"})
    says = rf"^backbone: {config['model_type']} cannot compute a batch of text \(.*{reason}.*choose one of these$"
    with pytest.raises(ModelError, match=says):
        simulate(check(settings, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not caplog.records


# --- attention

WITHOUT_SDPA: dict[str, dict[str, Any]] = {
    "mpnet": {**TINY_BERT, "model_type": "mpnet"},
    "gptj": {"model_type": "gptj", "vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4},
    "deberta": {**TINY_BERT, "model_type": "deberta"},
}


@pytest.mark.parametrize("kind", WITHOUT_SDPA)
def test_auto_takes_eager_where_there_is_no_sdpa_and_says_so(kind: str, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        spec = random(WITHOUT_SDPA[kind], dtype=dtype)
        assert notes(spec, 2) == [f"transformers has no sdpa for {kind}: backbone.attention=auto uses eager"]
        assert open_base(spec, prepare(spec, 0, 2, tmp_path)).config._attn_implementation == "eager"
    eager = spec.model_copy(update={"attention": "eager"})
    assert notes(eager, 2) == [] and from_config(eager, 2) is not None


@pytest.mark.parametrize("kind", WITHOUT_SDPA)
def test_sdpa_is_refused_where_there_is_none_and_both_remedies_help(kind: str) -> None:
    spec = random(WITHOUT_SDPA[kind], attention="sdpa")
    with pytest.raises(ModelError, match=f"no sdpa for {kind}; set backbone.attention=eager, or auto$"):
        check_supported(spec)
    for remedy in ("eager", "auto"):
        check_supported(spec.model_copy(update={"attention": remedy}))


def test_auto_is_sdpa_elsewhere() -> None:
    for config in (TINY_BERT, TINY_LLAMA):
        spec = random(config)
        assert attention_of(spec, config_of(spec)) == "sdpa" and notes(spec, 2) == []
