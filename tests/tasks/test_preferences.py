"""Preferences: what rows are read, how pairs are encoded, and that loss and gradients are those of DPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_preferences
from near import assert_all_near
from peft_models import FAMILIES, stirred
from torch import Tensor
from torch.nn.functional import logsigmoid

from fibec_ray.answers import Answers
from fibec_ray.config.load import check
from fibec_ray.curvature.fisher import batch_squares
from fibec_ray.data.conversations import split_dialogues
from fibec_ray.data.encode_pairs import encode_pairs
from fibec_ray.data.encoded import EncodedSet
from fibec_ray.data.examples import Pairs
from fibec_ray.data.pairs import PairSet, PairShard
from fibec_ray.data.preference_exercises import PreferenceSettings, generate
from fibec_ray.data.sets import open_set
from fibec_ray.data.settings import DataConfig
from fibec_ray.errors import ConfigError, DataError
from fibec_ray.model_types import LaneBatch
from fibec_ray.models.backbone import load_tokenizer, prepare
from fibec_ray.models.spec import Backbone
from fibec_ray.models.torch_model import ModelSpec, TorchModel
from fibec_ray.parts.peft.library import adapted
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.tasks import load, parse_task
from fibec_ray.tasks.preferences import FromPreferences, PreferenceExercises
from fibec_ray.types import Predictions

BETA = 0.3
DPO = Answers(likelihood="bernoulli", num_scores=1, readout="pair", beta=BETA)


# --- rows


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def read(rows: list[dict[str, Any]], folder: Path, **task: Any) -> Pairs:
    """The training rows of a table, as a user's task reads them."""
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    config = DataConfig(path=str(folder), test="test.parquet", train="train.parquet")
    return load(parse_task({"name": "mine", "kind": "preferences", **task}), config, 0)[0]


def test_conversations_end_in_the_response(tmp_path: Path) -> None:
    """The layout of UltraFeedback: the prompt is in both conversations, and in a column that is not needed."""
    row = {
        "prompt": "hi",
        "chosen": [said("system", "be kind"), said("user", "hi"), said("assistant", "hello")],
        "rejected": [said("system", "be kind"), said("user", "hi"), said("assistant", "go away")],
        "source": "chat",
    }
    rows = read([row], tmp_path)
    assert rows.prompts == ["System: be kind\n\nHuman: hi\n\nAssistant:"]
    assert (rows.chosen, rows.rejected, rows.categories) == ([" hello"], [" go away"], ("chat",))


def test_dialogues_are_split_at_the_last_common_cue(tmp_path: Path) -> None:
    """The layout of HH-RLHF: no prompt, and the whole dialogue as one text."""
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: name?\n\nAssistant:"
    rows = read([{"chosen": f"{start} Ada", "rejected": f"{start} no\n\nHuman: why?\n\nAssistant: so"}], tmp_path)
    assert rows.prompts == [start.lstrip()] and not rows.has_categories
    assert (rows.chosen, rows.rejected) == ([" Ada"], [" no\n\nHuman: why?\n\nAssistant: so"])
    with pytest.raises(ValueError, match="no 'Assistant:' in common"):
        split_dialogues("a", "b")


def test_plain_texts_stay_as_they_are(tmp_path: Path) -> None:
    rows = read([{"q": "The sky is", "chosen": " blue.", "rejected": " green."}], tmp_path, pairs={"prompt": "q"})
    assert (rows.prompts, rows.chosen, rows.rejected) == (["The sky is"], [" blue."], [" green."])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "no column 'rejected'.* set task.pairs.rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": "b "}, "row 0: both responses are the same; .*drop_unusable=true"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "row 0: the chosen response is empty"),
        ({"prompt": "a", "chosen": 1, "rejected": 2}, "column 'chosen': the values are of type int64, not text or a"),
        ({"chosen": "b", "rejected": "c"}, "columns 'chosen', 'rejected', row 0: the two dialogues have no"),
        ({"prompt": "a", "chosen": [said("user", "b")], "rejected": "c"}, "row 0: one response is a text"),
        ({"chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}, "row 0: a message of the chosen side"),
        (
            {"chosen": [said("user", "a"), said("x", "b")], "rejected": [said("user", "c"), said("x", "b")]},
            "row 0: the two conversations differ before their last message",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "category": ""}, "column 'category': the category is empty"),
    ],
)
def test_errors_name_the_row(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"train.parquet.*{message}"):
        read([row], tmp_path)


def test_unusable_rows_are_left_out_on_request(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": word, "rejected": "b"} for word in ("b", "", "c")]
    found = read(rows, tmp_path, drop_unusable=True)
    assert found.chosen == ["c"] and found.origin is not None and found.origin.place(0).endswith("row 2")


def test_a_setting_without_effect_is_rejected(tmp_path: Path) -> None:
    task = parse_task({"name": "mine", "kind": "preferences"})
    with pytest.raises(DataError, match="data.label_column: has no effect.*task.pairs"):
        load(task, DataConfig(path=str(tmp_path), label_column="x"), 0)


def test_wrong_answers_are_wrong_and_repeat_with_the_seed() -> None:
    settings = PreferenceSettings(num_train=120, num_test=30)
    rows, again = generate(120, 4, "train", settings), generate(120, 4, "train", settings)
    assert rows.rejected == again.rejected and rows.true_difficulty is not None
    assert all(good.strip() != bad.strip() for good, bad in zip(rows.chosen, rows.rejected, strict=True))
    assert not set(rows.prompts) & set(generate(30, 4, "test", settings).prompts)


# --- encoding


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(Backbone(name="minilm"))


def pairs_of(*texts: tuple[str, str, str]) -> Pairs:
    sides = [list(side) for side in zip(*texts, strict=True)]
    return Pairs(*sides, np.zeros(len(texts), np.int64), ("",))


TEXTS = (("what is the best fruit", " apple", " salt and sand"), ("a", " the big red house", " no"))


def encoded(tokenizer: Any, max_length: int = 16) -> PairSet:
    return encode_pairs(pairs_of(*TEXTS), tokenizer, max_length)


def words(tokenizer: Any, ids: Tensor, mask: Tensor) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids[mask.bool()].tolist()))


def test_both_responses_follow_the_same_prompt(tokenizer: Any, tmp_path: Path) -> None:
    made_set = encoded(tokenizer)
    made_set.save(tmp_path / "set")
    opened = open_set(tmp_path / "set")
    assert isinstance(opened, PairSet) and opened.labels.tolist() == [[1], [1]]
    assert opened.lengths.tolist() == [2 * 10, 2 * 7] and opened.answer_lengths.tolist() == [2 + 4, 5 + 2]
    batch = opened.shard(np.array([1, 0])).batch(torch.tensor([1]))
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert ids.shape == (1, 2, 10) and batch.length == 20 and batch.inputs["answer_at"].tolist() == [[5, 5]]
    prompt = "[CLS] what is the best fruit"
    assert words(tokenizer, ids[0, 0], mask[0, 0]) == f"{prompt} apple [SEP]"
    assert words(tokenizer, ids[0, 1], mask[0, 1]) == f"{prompt} salt and sand [SEP]"


def test_long_prompts_lose_their_beginning_alike(tokenizer: Any) -> None:
    """Seven tokens: [CLS], at least three of the prompt, and the responses' beginnings."""
    cut = encoded(tokenizer, 7)
    batch = cut.shard(np.array([0])).batch(torch.tensor([0]))
    found = [words(tokenizer, batch.inputs["input_ids"][0, k], batch.inputs["attention_mask"][0, k]) for k in (0, 1)]
    assert found == ["[CLS] the best fruit apple [SEP]", "[CLS] the best fruit salt and sand"]
    assert (cut.num_cut, cut.num_cut_responses) == (1, 1)
    with pytest.raises(DataError, match="data.max_length: 2 tokens have no room.* at least 3"):
        encoded(tokenizer, 2)


def test_shortened_pairs_keep_their_responses(tokenizer: Any) -> None:
    """Eight tokens for each text."""
    shard = encoded(tokenizer).shard(np.array([0])).shortened(16)
    batch = shard.batch(torch.tensor([0]))
    found = [words(tokenizer, batch.inputs["input_ids"][0, k], batch.inputs["attention_mask"][0, k]) for k in (0, 1)]
    assert found[0] == "[CLS] what is the best fruit apple [SEP]"
    assert found[1].endswith("salt and sand [SEP]") and shard.lengths.tolist() == [16]


def test_a_made_up_batch_looks_like_a_real_one(tokenizer: Any) -> None:
    made_set = encoded(tokenizer)
    real, made_up = made_set.shard(np.arange(2)).batch(torch.arange(2)), made_set.form.batch(2, 20)
    assert {name: column.shape for name, column in real.inputs.items()} == {
        name: column.shape for name, column in made_up.inputs.items()
    }
    assert real.labels.shape == made_up.labels.shape


# --- DPO


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    config = {"model_type": request.param, **FAMILIES[request.param]}
    spec = Backbone(init="random", config=config, tokenizer="minilm", head="causal_lm")
    return stirred(TorchModel(ModelSpec(spec, Lora(r=2), DPO), prepare(spec, 0, 1, tmp_path_factory.mktemp("bases"))))


LENGTHS = ([4, 6, 5], [7, 4, 6])
"""Tokens of the chosen and of the rejected texts; the first three are the prompt."""


def small() -> PairShard:
    """Three pairs of texts with token ids below 50."""
    rng, sides = np.random.default_rng(0), []
    for lengths in LENGTHS:
        tokens = np.concatenate([[7, 9, 11 + row, *rng.integers(5, 50, n - 3)] for row, n in enumerate(lengths)])
        offsets, texts = np.cumsum([0, *lengths]), np.zeros(len(tokens), np.uint8)
        labels, at = np.ones((3, 1), np.int64), np.full(3, 2, np.int32)
        sides.append(EncodedSet(tokens.astype(np.int32), offsets, labels, at, None, 0, texts, answers_are_texts=True))
    return PairSet(*sides).shard(np.arange(3))


def log_prob(model: TorchModel, shard: PairShard, row: int, side: int) -> Tensor:
    """Of one response alone, without padding: the sum over its tokens."""
    inputs = shard.batch(torch.tensor([row])).inputs
    ids = inputs["input_ids"][0, side][inputs["attention_mask"][0, side].bool()]
    log_probs = model.module(input_ids=ids.unsqueeze(0)).logits[0].float().log_softmax(1)
    return torch.stack([log_probs[at - 1, ids[at]] for at in range(3, len(ids))]).sum()


def by_hand(model: TorchModel, shard: PairShard, row: int) -> Tensor:
    """DPO's loss of one pair, with PEFT's own switch for the reference."""
    policy = [log_prob(model, shard, row, side) for side in (0, 1)]
    with torch.no_grad(), model.module.disable_adapter():
        reference = [log_prob(model, shard, row, side) for side in (0, 1)]
    return -logsigmoid(BETA * ((policy[0] - reference[0]) - (policy[1] - reference[1])))


def test_losses_and_gradients_are_those_of_a_loop_over_pairs(model: TorchModel) -> None:
    shard, names = small(), list(model.trainable)
    out, caught = model.per_sample_grads(shard.batch(torch.arange(3)), names)
    grads = caught.gradients(model.grad(out.losses.sum(), caught.tensors))
    assert not torch.allclose(out.scores, torch.zeros(3, 1))
    for row in range(3):
        loss = by_hand(model, shard, row)
        torch.testing.assert_close(out.losses[row], loss)
        expected = torch.autograd.grad(loss, list(model.trainable.values()))
        assert_all_near([grads[name][row] for name in names], expected)


def test_expected_fisher_information_is_p_one_minus_p_of_the_score(model: TorchModel) -> None:
    shard, names = small(), list(model.trainable)
    squares, _ = batch_squares(model, shard, torch.arange(3), names, "expected")
    for row in range(3):
        loss = by_hand(model, shard, row)
        p = torch.exp(-loss.detach())
        found = torch.autograd.grad(loss, list(model.trainable.values()))
        for name, grad in zip(names, found, strict=True):  # d loss = (p - 1) d score
            torch.testing.assert_close(squares[name][row], grad.square() * p / (1 - p), rtol=1e-3, atol=1e-8)


def test_an_untrained_adapter_has_margins_of_exactly_zero(model: TorchModel) -> None:
    before = model.read()
    model.load({name: torch.zeros_like(value) for name, value in before.items()})
    out = model.forward(small().batch(torch.arange(3)))
    model.load(before)
    assert out.scores.tolist() == [[0.0]] * 3
    torch.testing.assert_close(out.losses, torch.full((3,), 2.0).log())


def test_switching_off_leaves_the_adapter_as_it_was(model: TorchModel) -> None:
    flags = {name: p.requires_grad for name, p in model.module.named_parameters()}
    model.forward(small().batch(torch.arange(2)))
    assert flags == {name: p.requires_grad for name, p in model.module.named_parameters()}
    assert not any(layer.disable_adapters for layer in adapted(model.module))


def test_the_reference_has_no_dropout(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", **FAMILIES["gpt2"], "resid_pdrop": 0.5}
    spec = Backbone(init="random", config=config, tokenizer="minilm", head="causal_lm", dropout=True)
    found = TorchModel(ModelSpec(spec, Lora(r=2), DPO), prepare(spec, 0, 1, tmp_path))
    found.train(True)
    batch = small().batch(torch.arange(3))
    first, second = (found.forward(batch).predicted for _ in range(2))
    assert torch.equal(first[:, 2:], second[:, 2:]) and not torch.equal(first[:, :2], second[:, :2])
    found.train(False)
    assert found.forward(batch).scores.tolist() == [[0.0]] * 3


def test_lanes_match_their_devices_one_by_one(model: TorchModel) -> None:
    shard, before = small(), model.read()
    values = [before, {name: 1.5 * value for name, value in before.items()}]
    batches = [shard.batch(torch.tensor(rows)) for rows in ([0, 2], [1])]
    together, _ = model.together([LaneBatch(own, each) for own, each in zip(values, batches, strict=True)])
    for own, each, out in zip(values, batches, together, strict=True):
        model.load(own)
        alone = model.forward(each)
        torch.testing.assert_close(alone.losses, out.losses)
        torch.testing.assert_close(alone.predicted, out.predicted)
    model.load(before)


def test_work_counts_the_reference(model: TorchModel) -> None:
    batch = small().batch(torch.arange(3))
    alone, trained = model.cost(batch, graph=False), model.cost(batch, graph=True)
    assert trained.flops == pytest.approx(1.5 * alone.flops) and trained.backward_flops == alone.flops / 2


# --- scores and settings


def test_scores_by_hand() -> None:
    """Three pairs: a margin of 0.4, one of -0.2, and one of 0, which is not positive."""
    values = torch.tensor([[0.3, -0.1, -5.0, -6.0], [0.1, 0.3, -3.0, -6.0], [0.2, 0.2, -7.0, -6.0]])
    found = PreferenceExercises(name="x").score(Predictions(torch.ones(3, 1), values, torch.ones(3)))
    assert found is not None and found.accuracy == pytest.approx(1 / 3) and found.perplexity is None
    # log pi = reward / 0.1 + log ref: (-2, -7), (-2, -3), (-5, -4)
    assert dict(found.metrics or []) == pytest.approx(
        {
            "margin": 0.2 / 3,
            "chosen_reward": 0.2,
            "rejected_reward": 0.4 / 3,
            "likelihood_accuracy": 2 / 3,
            "base_likelihood_accuracy": 2 / 3,
        }
    )


@pytest.mark.parametrize("peft", ["full", "bitfit", "p_tuning", "delta_lora"])
def test_kinds_that_cannot_be_switched_off_are_rejected(peft: str) -> None:
    with pytest.raises(ConfigError, match=f"method.peft: {peft} cannot be switched off.* one of: lora, "):
        check(make_preferences({"name": "mine", "peft": peft}), "test")


def test_backbones_without_text_answers_are_rejected() -> None:
    with pytest.raises(ConfigError, match="compares responses in text.*backbone.head=causal_lm"):
        check(make_preferences(backbone={"head": "mean_pool"}), "test")


def test_beta_belongs_to_pairs() -> None:
    with pytest.raises(ValueError, match="beta is None"):
        Answers(likelihood="bernoulli", num_scores=1, readout="pair")
    with pytest.raises(ValueError, match="beta is 0.1"):
        Answers(likelihood="bernoulli", num_scores=1, beta=0.1)
    answers = FromPreferences(name="x", beta=0.7).answers(1, None)
    assert (answers.beta, answers.backwards("expected"), answers.num_columns) == (0.7, 1, 1)
