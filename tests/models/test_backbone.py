"""Base weights are prepared once, shared by all processes of a node, and never run foreign code."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_BERT, TINY_LLAMA
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fibec_ray.errors import ModelError
from fibec_ray.models.backbone import load_tokenizer, locate, open_base, prepare
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.models.spec import Backbone

quiet_libraries()

SMALL = {**TINY_BERT, "vocab_size": 100}
BIG = {
    "model_type": "bert",
    "vocab_size": 20_000,
    "hidden_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
"""37 M parameters: 148 MB in float32, 74 MB in bfloat16"""


def random_init(config: dict[str, Any] = SMALL, **changes: Any) -> Backbone:
    return Backbone(init="random", config=config, tokenizer="minilm", **changes)


def refusal(spec: Backbone, cache: Path) -> str:
    """The message of the ModelError: one line, and nothing half-made is left."""
    with pytest.raises(ModelError) as caught:
        prepare(spec, 0, 3, cache)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert [path.name for path in cache.glob("base-*") if path.suffix != ".lock"] == []
    return message


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder as a person may have one."""
    folder = tmp_path / "checkpoint"
    shutil.move(prepare(random_init(), 0, 3, tmp_path / "elsewhere"), folder)
    return folder


# --- prepared once


def test_prepare_is_idempotent(tmp_path: Path) -> None:
    first = prepare(random_init(), 0, 3, tmp_path)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.iterdir()}
    assert prepare(random_init(), 0, 3, tmp_path) == first
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.iterdir()} == before
    assert {path.name for path in first.iterdir()} == {"config.json", "model.safetensors", "prepared.json"}


def test_another_backbone_dtype_or_seed_has_another_folder(tmp_path: Path) -> None:
    specs = [(random_init(), 0), (random_init(), 1), (random_init(dtype="bfloat16"), 0), (random_init(TINY_LLAMA), 0)]
    folders = {prepare(spec, seed, 3, tmp_path) for spec, seed in specs}
    assert len(folders) == 4


def test_the_same_seed_gives_the_same_random_weights(tmp_path: Path) -> None:
    one, two, other = (
        prepare(random_init(), seed, 3, tmp_path / name) for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_random_weights_leave_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    prepare(random_init(), 0, 3, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_at_once_make_one_folder(tmp_path: Path) -> None:
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(prepare(random_init(), 0, 3, tmp_path))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3 and len(set(folders)) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folders[0].name]
    assert not list(tmp_path.glob("*.part"))


def test_processes_at_once_make_one_folder(tmp_path: Path) -> None:
    """Forks of this process, because the libraries take seconds to import."""
    fork = multiprocessing.get_context("fork")
    both_ready, found = fork.Barrier(2), fork.SimpleQueue()

    def work() -> None:
        both_ready.wait(timeout=60)
        found.put(str(prepare(random_init(), 0, 3, tmp_path)))

    processes = [fork.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = found.get(), found.get()
    assert [str(path) for path in tmp_path.iterdir() if path.is_dir()] == [first] == [second]


# --- shared by all processes

MEASURE = """
import json, sys
from pathlib import Path
import psutil, torch, transformers, peft
from transformers import AutoModel, BertModel
from fibec_ray.answers import Answers
from fibec_ray.models.backbone import open_base
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.model_types import Batch
torch.set_num_threads(1)
spec, small, big = Backbone.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
def copied():  # what this process has written, and shared memory; the pages of files on disk are not among it
    maps = psutil.Process().memory_maps()
    shared = [mapping for mapping in maps if mapping.path.startswith(("/dev/shm", "/memfd"))]
    return sum(mapping.anonymous for mapping in maps) + sum(mapping.rss for mapping in shared)
ids = torch.ones(2, 8, dtype=torch.int64)
zeros = torch.zeros(2, dtype=torch.int64)
batch = Batch({"input_ids": ids, "attention_mask": ids, "answer_at": zeros}, zeros)
answers = Answers(likelihood="categorical", num_scores=3)
def use(folder):
    model = TorchModel(ModelSpec(spec, Lora(target_modules=("query",)), answers), folder)
    model.forward(batch).losses.sum().backward()
    return model
use(small)  # so that what the first model imports does not count
before = copied()
model = use(big)
after = copied()
sizes = {str(p.dtype): p.numel() for n, p in model.peft_model.named_parameters() if "word_embeddings" in n}
weights = sum(p.numel() * p.element_size() for p in model.peft_model.parameters() if not p.requires_grad)
print(json.dumps({"copied": after - before, "weights": weights, "dtypes": sizes}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the pages of a process from /proc")
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_base_weights_are_shared_not_copied(dtype: Any, tmp_path: Path) -> None:
    """A process that has loaded the base, put an adapter on it and trained on it has no copy of its own.

    The promise is less than 100 MB over the imports; where a copy of the weights would be smaller than that, less than
    half of it.
    """
    spec = random_init(BIG, dtype=dtype)
    big, small = prepare(spec, 0, 3, tmp_path), prepare(random_init(dtype=dtype), 0, 3, tmp_path)
    command = [sys.executable, "-c", MEASURE, spec.model_dump_json(), str(small), str(big)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["dtypes"].keys() == {f"torch.{dtype}"}
    assert found["weights"] > {"float32": 140e6, "bfloat16": 70e6}[dtype]
    assert found["copied"] < min(100e6, found["weights"] / 2), found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_folder_and_the_base_have_the_dtype_asked_for(dtype: Any, tmp_path: Path) -> None:
    folder = prepare(random_init(dtype=dtype), 0, 3, tmp_path)
    wanted = getattr(torch, dtype)
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {wanted}
    model = open_base(random_init(dtype=dtype), folder)
    assert {p.dtype for p in model.parameters()} == {wanted}
    assert not any(p.requires_grad for p in model.parameters())


def test_a_checkpoint_is_cast_once_and_keeps_its_values(checkpoint: Path, tmp_path: Path) -> None:
    given = load_file(checkpoint / "model.safetensors")
    for dtype in ("float32", "bfloat16"):
        folder = prepare(Backbone(name=str(checkpoint), dtype=dtype), 0, 3, tmp_path / "cache")  # type: ignore[arg-type]
        made = load_file(folder / "model.safetensors")
        assert made.keys() == given.keys()
        assert all(torch.equal(made[name], value.to(getattr(torch, dtype))) for name, value in given.items())


def test_the_packaged_model_loads_without_network(tmp_path: Path) -> None:
    folder = prepare(Backbone(), 0, 3, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (384, 6)
    name = "encoder.layer.5.output.dense.weight"
    found = []
    for source in (folder, Path(locate("minilm"))):
        with safe_open(source / "model.safetensors", "pt") as weights:
            found.append(weights.get_tensor(name).float())
    assert torch.equal(*found)


# --- refused in one line


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    message = refusal(Backbone(name=str(tmp_path / "none")), tmp_path / "cache")
    assert message.startswith(f"backbone.name: cannot load '{tmp_path / 'none'}'")
    assert "give a local folder with config.json and model.safetensors, or use name: minilm" in message


def test_a_hub_model_without_network(tmp_path: Path) -> None:
    assert "backbone.name: cannot load 'no/such-model'" in refusal(Backbone(name="no/such-model"), tmp_path)


def test_masked_lm_on_a_model_without_such_a_head(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2 is published without its head; a random one would predict label words by chance."""
    message = refusal(Backbone(head="masked_lm"), tmp_path)
    assert "backbone.head: masked_lm needs a language-model head" in message
    assert "use head: mean_pool, or a backbone with such a head" in message


def test_a_head_that_the_architecture_does_not_have(tmp_path: Path) -> None:
    message = refusal(random_init(TINY_LLAMA, head="masked_lm"), tmp_path)
    assert message.startswith("backbone.config gives no model for head: masked_lm")
    assert len(message) < 500  # transformers lists all architectures


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"hidden_size": "wide"}, "expected int"),
        ({"hidden_size": -32}, "negative"),
        ({"model_type": "brt"}, "Unrecognized model identifier: brt"),
    ],
)
def test_a_config_that_gives_no_model(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    message = refusal(random_init({**SMALL, **change}), tmp_path)
    assert message.startswith("backbone.config ") and says in message


def test_only_a_pickle(checkpoint: Path, tmp_path: Path) -> None:
    """Unpickling runs code, so weights must be safetensors. This pickle would leave a file behind."""
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    assert "cannot load" in refusal(Backbone(name=str(checkpoint)), tmp_path / "cache")


def test_code_in_the_checkpoint_is_never_run(checkpoint: Path, tmp_path: Path) -> None:
    witness = tmp_path / "was-run"
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "ours", "auto_map": {"AutoConfig": "code.OurConfig", "AutoModel": "code.OurModel"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "code.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    for init in ("pretrained", "random"):
        spec = Backbone(name=str(checkpoint), init=init)  # type: ignore[arg-type]
        assert "cannot load" in refusal(spec, tmp_path / "cache")
    with pytest.raises(ModelError):
        load_tokenizer(Backbone(name=str(checkpoint)))
    assert not witness.exists()


@pytest.mark.parametrize("kept", [0, 1000])
def test_weights_cut_short(kept: int, checkpoint: Path, tmp_path: Path) -> None:
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[:kept])
    assert "cannot load" in refusal(Backbone(name=str(checkpoint)), tmp_path / "cache")


@pytest.mark.parametrize("head", ["mean_pool", "model", "masked_lm"])
def test_weights_of_another_shape_than_the_config(head: Any, checkpoint: Path, tmp_path: Path) -> None:
    """A classification head may be of another shape, a body may not."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    assert "cannot load" in refusal(Backbone(name=str(checkpoint), head=head), tmp_path / "cache")


@pytest.mark.parametrize("head", ["mean_pool", "model", "masked_lm"])
def test_weights_that_lack_a_block(head: Any, checkpoint: Path, tmp_path: Path) -> None:
    """transformers would start the missing block at random and go on."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    message = refusal(Backbone(name=str(checkpoint), head=head), tmp_path / "cache")
    assert "lacks weights for its config" in message and "encoder.layer.3." in message


@pytest.mark.parametrize("head", ["mean_pool", "model"])
def test_only_heads_and_poolers_may_start_at_random(head: Any, checkpoint: Path, tmp_path: Path) -> None:
    weights = {n: v for n, v in load_file(checkpoint / "model.safetensors").items() if not n.startswith("pooler.")}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    made = load_file(prepare(Backbone(name=str(checkpoint), head=head), 0, 3, tmp_path / "cache") / "model.safetensors")
    prefix = "bert." if head == "model" else ""
    assert all(torch.equal(made[f"{prefix}{name}"], value) for name, value in weights.items())
    assert head == "mean_pool" or made["classifier.weight"].shape == (3, 32)


# --- tokenizers


def tokenizer_folder(folder: Path, **special: str) -> Path:
    """A word-level tokenizer as GPT-2's is laid out: special tokens only where they are named."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|endoftext|>", "<unk>", "good", "bad", "film"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special).save_pretrained(folder)
    return folder


def test_the_packaged_tokenizer() -> None:
    tokenizer = load_tokenizer(Backbone())
    assert tokenizer is load_tokenizer(Backbone(name="elsewhere", tokenizer="minilm")), "read once in a process"
    assert tokenizer(["hello world"])["input_ids"] == [[101, 7592, 2088, 102]]
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("[PAD]", "right")


def test_a_tokenizer_without_pad_token_pads_with_its_end_of_text(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "tok", eos_token="<|endoftext|>")
    tokenizer = load_tokenizer(Backbone(tokenizer=str(folder)))
    assert tokenizer.pad_token == "<|endoftext|>"
    padded = tokenizer(["good film", "bad"], padding=True)
    assert padded["input_ids"] == [[2, 4], [3, 0]]
    assert padded["attention_mask"] == [[1, 1], [1, 0]]


def test_a_tokenizer_with_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has neither a pad nor an end-of-text token; choose another"):
        load_tokenizer(Backbone(tokenizer=str(tokenizer_folder(tmp_path / "tok"))))


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    for spec in (
        Backbone(tokenizer=str(tmp_path / "none")),
        Backbone(name=str(tmp_path)),
        Backbone(tokenizer="no/such"),
    ):
        with pytest.raises(ModelError, match="backbone.tokenizer: cannot load") as caught:
            load_tokenizer(spec)
        assert len(str(caught.value).splitlines()) == 1


def test_tests_have_a_cache_of_their_own() -> None:
    assert "pytest" in os.environ["FIBEC_RAY_CACHE"]
