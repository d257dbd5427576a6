"""Two texts per sample: they run as two rows, and everything else sees one sample with the tokens of both."""

from __future__ import annotations

import pytest
import torch
from near import assert_all_near
from peft_models import made, stirred
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.curvature.per_sample import Part
from fibec_ray.likelihoods import Bernoulli
from fibec_ray.model_types import Batch, LaneBatch
from fibec_ray.models.readout import Read, Run
from fibec_ray.models.token_readouts import Response
from fibec_ray.models.torch_model import TorchModel
from fibec_ray.parts.peft.lora import Lora

LENGTHS = [[5, 7], [4, 3], [6, 2]]
PROMPTS = [3, 2, 1]
MARGIN = Answers(likelihood="bernoulli", num_scores=1)


class Margin(Response):
    """The log-odds that the first text of a pair is the better one: the difference of their responses' losses."""

    def read(self, run: Run, batch: Batch) -> Read:
        losses = super().read(run, batch).losses.view(-1, 2)
        return self._scored(losses[:, 1:] - losses[:, :1], batch)

    def _scored(self, scores: Tensor, batch: Batch) -> Read:
        return Read(Bernoulli().losses(scores, batch.labels), scores, Bernoulli())


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    found = stirred(made(Lora(r=2), request.param, "causal_lm", tmp_path_factory.mktemp("bases")))
    found._readout = Margin(found.base, MARGIN)
    return found


def pairs(chosen: list[int] | None = None) -> Batch:
    """These samples, padded to the longest of their texts."""
    rows = range(3) if chosen is None else chosen
    lengths = torch.tensor([LENGTHS[row] for row in rows])
    ids = torch.randint(5, 50, (3, 2, 7), generator=torch.Generator().manual_seed(0))[list(rows), :, : lengths.max()]
    mask = (torch.arange(int(lengths.max())) < lengths.unsqueeze(2)).long()
    at = torch.tensor([[PROMPTS[row] - 1] * 2 for row in rows])
    return Batch({"input_ids": ids * mask, "attention_mask": mask, "answer_at": at}, torch.ones(len(lengths), 1))


def by_hand(model: TorchModel, sample: int) -> Tensor:
    """The loss of one sample from the logits of its two texts, each alone and without padding."""
    sums = []
    for text in range(2):
        ids = pairs().inputs["input_ids"][sample, text, : LENGTHS[sample][text]]
        log_probs = model.module(ids.unsqueeze(0)).logits[0].log_softmax(1)
        places = range(PROMPTS[sample], len(ids))
        sums.append(torch.stack([log_probs[at - 1, ids[at]] for at in places]).mean())
    return -torch.nn.functional.logsigmoid(sums[0] - sums[1])


@torch.no_grad()
def test_losses_are_those_of_both_texts_alone(model: TorchModel) -> None:
    found = model.forward(pairs())
    torch.testing.assert_close(found.losses, torch.stack([by_hand(model, i) for i in range(3)]))
    assert found.scores.shape == (3, 1) and pairs().length == 14


@torch.no_grad()
def test_states_and_embeddings_have_the_tokens_of_both_texts(model: TorchModel) -> None:
    embeds = model.embed(pairs())
    assert embeds.shape == (3, 14, 32)
    out, again = model.forward(pairs(), hidden=True), model.forward(pairs(), embeds=embeds, hidden=True)
    torch.testing.assert_close(again.losses, out.losses)
    real = pairs().real(embeds)
    assert real.sum(1).flatten().tolist() == [12, 7, 8]
    for states, same in zip((*out.hidden, out.last), (*again.hidden, again.last), strict=True):
        assert states.shape == (3, 14, 32)
        torch.testing.assert_close(states * real, same * real)
    second = Batch({name: column[:, 1] for name, column in pairs().inputs.items()}, pairs().labels)
    model._readout, margin = Response(model.base, MARGIN), model._readout
    alone = model.forward(second, hidden=True)
    model._readout = margin
    torch.testing.assert_close(out.hidden[1][:, 7:] * real[:, 7:], alone.hidden[1] * second.real(alone.hidden[1]))


def gradients(model: TorchModel, losses: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(losses.sum(), list(model.trainable.values())))


def test_gradients_of_samples_are_exact(model: TorchModel) -> None:
    names = list(model.trainable)
    out, caught = model.per_sample_grads(pairs(), names)
    found = caught.gradients(model.grad(out.losses.sum(), caught.tensors))
    for i in range(3):
        assert_all_near([found[name][i] for name in names], gradients(model, by_hand(model, i)))


def test_lanes_match_their_devices_one_by_one(model: TorchModel) -> None:
    """Two devices with their own values: one has samples 0 and 2, the other sample 1, which is shorter."""
    before, names = model.read(), list(model.trainable)
    values = [before, {name: 1.5 * value for name, value in before.items()}]
    batches = [pairs([0, 2]), pairs([1])]
    lanes = [
        LaneBatch({name: value.clone().requires_grad_() for name, value in own.items()}, each)
        for own, each in zip(values, batches, strict=True)
    ]
    with torch.enable_grad():
        together, caught = model.together(lanes, names, hidden=True)
    grads = torch.autograd.grad(sum(out.losses.sum() for out in together), caught.tensors)
    starts = (0, 2)
    for own, each, out, start in zip(values, batches, together, starts, strict=True):
        model.load(own)
        alone, seen = model.per_sample_grads(each, names, hidden=True)
        torch.testing.assert_close(alone.losses, out.losses)
        for mine, same in zip((*alone.hidden, alone.last), (*out.hidden, out.last), strict=True):
            assert mine.shape == same.shape == (each.num_samples, each.length, 32)
            torch.testing.assert_close(mine * each.real(mine), same * each.real(same), rtol=1e-4, atol=1e-5)
        part = Part(slice(start, start + each.num_samples), each.length // 2, 7, 3, 2)
        of_lane = caught.part(part).gradients([part.of(grad) for grad in grads])
        expected = seen.gradients(model.grad(alone.losses.sum(), seen.tensors))
        for name in names:
            torch.testing.assert_close(of_lane[name], expected[name], rtol=1e-4, atol=1e-6)
    model.load(before)


@torch.no_grad()
def test_lanes_take_embeddings_of_both_texts(model: TorchModel) -> None:
    batches, values = [pairs([0]), pairs([1, 2])], model.read()
    lanes = [LaneBatch(values, each, model.embed(each)) for each in batches]
    together, _ = model.together(lanes)
    for each, out in zip(batches, together, strict=True):
        torch.testing.assert_close(out.losses, model.forward(each).losses)


def test_work_counts_both_texts(model: TorchModel) -> None:
    work = model.cost(pairs(), graph=False)
    assert work.num_tokens == 6 * 7
    assert model._readout.num_predicted(pairs()) == sum(map(sum, LENGTHS)) - 2 * sum(PROMPTS)
