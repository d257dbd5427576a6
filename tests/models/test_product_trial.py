"""The choice of products: by made-up times, by a real trial, and without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import TINY_BERT

from fibec_ray.errors import ModelError
from fibec_ray.models import product_trial, products
from fibec_ray.models.product_trial import Shape, Trial, best, choose, shapes_of, using_threads
from fibec_ray.models.products import candidates, of_older_runs, refuse_missing, unfit
from fibec_ray.models.spec import Backbone
from fibec_ray.types import Products

BF16: tuple[Products, ...] = ("onednn", "onednn_float32", "torch_float32")
TINY = Backbone(init="random", config={**TINY_BERT, "vocab_size": 50}, tokenizer="minilm")


def taking(**times: float) -> Callable[[Products, float], float]:
    return lambda name, limit: times[name]


def machine(monkeypatch: pytest.MonkeyPatch, onednn: bool, bfloat16: bool) -> None:
    monkeypatch.setattr(products, "has_onednn", lambda: onednn)
    monkeypatch.setattr(products, "has_bfloat16", lambda: bfloat16)


def test_the_fastest_wins_unless_the_default_is_about_as_fast() -> None:
    assert best(("onednn", "torch"), taking(onednn=1.0, torch=2.0)) == "onednn"
    assert best(("onednn", "torch"), taking(onednn=1.0, torch=0.96)) == "onednn"
    assert best(("onednn", "torch"), taking(onednn=1.0, torch=0.9)) == "torch"
    assert best(BF16, taking(onednn=40.0, onednn_float32=1.1, torch_float32=1.0)) == "torch_float32"


def test_the_shortest_of_several_turns_counts() -> None:
    """A turn that other work slowed down does not count."""
    times = {"onednn": iter([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), "torch": iter([2.0] * 8)}
    assert best(("onednn", "torch"), lambda name, limit: next(times[name])) == "onednn"


def test_a_hopeless_candidate_gets_no_further_turn() -> None:
    asked: list[str] = []

    def seconds(name: Products, limit: float) -> float:
        asked.append(name)
        return {"onednn": 1.0, "onednn_float32": 3.5, "torch_float32": 40.0}[name]

    assert best(BF16, seconds) == "onednn"
    assert [asked.count(name) for name in BF16] == [product_trial.TURNS, 2, 1]


def test_no_turn_begins_after_the_time_is_over_except_the_second() -> None:
    ticks, asked = iter(range(100)), list[str]()
    best(("onednn", "torch"), lambda name, limit: asked.append(name) or 1.0, clock=lambda: float(next(ticks)))
    assert len(asked) == 4


def test_products_that_cannot_compute_here_are_left_out() -> None:
    def seconds(name: Products, limit: float) -> float:
        if name == "onednn":
            raise RuntimeError("could not create a primitive")
        return 1.0

    assert best(("onednn", "torch"), seconds) == "torch"


def test_candidates_of_a_machine_start_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, onednn=True, bfloat16=True)
    assert candidates("float32") == ("onednn", "torch") and candidates("bfloat16") == BF16
    machine(monkeypatch, onednn=True, bfloat16=False)
    assert candidates("bfloat16") == ("onednn_float32", "torch_float32", "onednn")
    machine(monkeypatch, onednn=False, bfloat16=True)
    assert candidates("float32") == ("torch",) and candidates("bfloat16") == ("torch", "torch_float32")
    assert of_older_runs() == "torch"


def test_products_that_do_not_fit_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unfit("auto", "float32") is unfit("torch", "bfloat16") is unfit("onednn_float32", "bfloat16") is None
    assert "set it to auto, torch or onednn" in (unfit("torch_float32", "float32") or "")
    machine(monkeypatch, onednn=False, bfloat16=True)
    refuse_missing("torch_float32")
    with pytest.raises(ModelError, match="fleet.products=torch_float32"):
        refuse_missing("onednn_float32")


def test_shapes_are_those_with_most_work_cut_to_a_trial_s_size() -> None:
    """BERT: four products (32, 32) and one of (32, 64) and of (64, 32) in each of 3 blocks, and a pooler (32, 32)."""
    assert shapes_of(TINY, 40) == [Shape(40, 32, 32, 13), Shape(40, 32, 64, 3), Shape(40, 64, 32, 3)]
    sizes = {"model_type": "llama", "hidden_size": 1536, "intermediate_size": 3072, "num_attention_heads": 8}
    large = Backbone(init="random", config={**sizes, "num_hidden_layers": 2, "vocab_size": 64}, tokenizer="minilm")
    (shape,) = shapes_of(large, 4096)
    assert (shape.rows, shape.inside, shape.out) == (256, 768, 768)
    assert shape.weight == 2 * (4 * 1536**2 + 3 * 1536 * 3072) / 768**2


def test_tiny_layers_get_the_default_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_trial, "best", None)
    for dtype in ("float32", "bfloat16"):
        assert choose(TINY.model_copy(update={"dtype": dtype}), 64, 1) == candidates(dtype)[0]


def test_a_real_trial_chooses_a_candidate_and_leaves_threads_alone() -> None:
    before = torch.get_num_threads()
    for dtype in ("float32", "bfloat16"):
        assert choose(Backbone(dtype=dtype), 64, 2) in candidates(dtype)
    assert torch.get_num_threads() == before
    with using_threads(before + 1):
        assert torch.get_num_threads() == before + 1


def test_times_add_up_over_layers_and_end_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {(4, False): 1.0, (4, True): 2.0, (8, False): 10.0, (8, True): 20.0}
    monkeypatch.setattr(Trial, "product", lambda self, name, shape, backward: times[shape.inside, backward])
    trial = Trial([Shape(2, 4, 4, 3.0), Shape(2, 8, 4)], torch.float32)
    assert trial.seconds("torch") == 3 * (1 + 2) + 10 + 20
    assert trial.seconds("torch", limit=5.0) == 9.0


@pytest.mark.slow
def test_without_wide_instructions_a_bfloat16_base_is_multiplied_in_float32() -> None:
    """On a processor that is made to look like one with AVX2 alone."""
    asked = (
        "from pathlib import Path; from fibec_ray.models.spec import Backbone as B;"
        "print(B(dtype='bfloat16').find_products(256, 1, Path('none')))"
    )
    limits: Any = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    done = subprocess.run([sys.executable, "-c", asked], env=os.environ | limits, capture_output=True, text=True)
    assert done.stdout.strip() in ("onednn_float32", "torch_float32"), done.stderr
