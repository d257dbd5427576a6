"""Uplinks: what devices send of an update, what the server decodes, and the residual that devices keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds, make_regression, make_tiny
from device_states import stored
from pydantic import ValidationError
from rotation import in_turn
from torch import Tensor

from fibec_ray import seeds
from fibec_ray.low_rank import A, B
from fibec_ray.method import Method
from fibec_ray.parts.uplink import UPLINKS
from fibec_ray.parts.uplink.base import Uplink
from fibec_ray.parts.uplink.codec import Compensated
from fibec_ray.parts.uplink.nf4 import NUMBERS
from fibec_ray.tensors import Tensors, add, digest, num_bytes

CODECS = [kind for kind in UPLINKS if kind != "none"]
WITH_FEEDBACK = [kind for kind, cls in UPLINKS.items() if issubclass(cls, Compensated)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def delta(seed: int = 1) -> Tensors:
    """Of 1,000 entries in two tensors."""
    return {"a": torch.randn(20, 40, generator=rng(seed)), "b": torch.randn(200, generator=rng(seed + 1)) / 100}


def through(uplink: Uplink, values: Tensors, memory: Tensors | None = None, seed: int = 0) -> tuple[Tensors, Tensors]:
    """What the server sees of a delta, and what the device remembers."""
    payload, kept = uplink.encode(values, memory or {}, rng(seed))
    return uplink.decode(payload, values), kept


# --- one codec at a time

BYTES = {
    "bf16": 2 * 1000,
    "fp16": 2 * 1000,
    "int8": 1000 + 4 * 2,  # blocks of 512
    "nf4": 500 + 4 * 16,  # blocks of 64
    "sign": 125 + 4 * 2,  # two tensors
    "topk": 50 * 8,
    "flasc": 250 * 8,
}


@pytest.mark.parametrize("kind", CODECS)
def test_a_payload_has_the_bytes_that_the_page_says(kind: str) -> None:
    payload, _ = UPLINKS[kind]().encode(delta(), {}, rng())
    assert num_bytes(payload) == BYTES[kind] < num_bytes(delta())


def test_the_table_of_the_page_is_right() -> None:
    """MiniLM's query and value in 6 layers, A and B of rank 8 each, and a head of 6 classes."""
    like = {f"{i}": torch.empty(8, 384) for i in range(24)} | {"w": torch.empty(6, 384), "b": torch.empty(6)}
    page = (Path(__file__).parents[2] / "docs" / "communication.md").read_text(encoding="utf-8")
    page = page.partition("\n## Codecs\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    told = {kind.strip("` "): (row[4], row[5]) for row in rows[1:] for kind in row[0].split(",")}
    assert told.keys() == UPLINKS.keys()
    for kind, (size, share) in told.items():
        payload = UPLINKS[kind]().expected_payload(like) if kind != "none" else {}
        count = sum(one.num_bytes for one in payload.values()) or num_bytes(like)
        assert (f"{count / 1e3:.1f}", f"{100 * count / num_bytes(like):.3g} %") == (size, share), kind


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_16_bit_codecs_round_to_the_nearest(kind: str, dtype: torch.dtype) -> None:
    seen, _ = through(UPLINKS[kind](), delta())
    assert all(torch.equal(value, delta()[name].to(dtype).float()) for name, value in seen.items())


def test_rounding_at_random_is_right_on_average_and_never_off_by_a_level() -> None:
    """Levels of s = 12.7 / 127 = 0.1: 0.26 becomes 0.2 in 40 % of draws and 0.3 in 60 %."""
    uplink = UPLINKS["int8"](block_size=30_000)
    values = {"x": torch.tensor([12.7, -12.7, 0.0] + [0.26] * 10_000 + [-0.26] * 10_000)}
    seen = through(uplink, values)[0]["x"]
    assert torch.allclose(seen[:3], values["x"][:3]) and {round(float(x), 3) for x in seen[3:10]} == {0.2, 0.3}
    # One draw has a standard deviation of 0.049, the mean of 10,000 of 0.0005.
    assert abs(float(seen[3:10_003].mean()) - 0.26) < 2e-3 and abs(float(seen[10_003:].mean()) + 0.26) < 2e-3
    assert (seen - values["x"]).abs().max() < 0.1
    assert torch.equal(seen, through(uplink, values)[0]["x"])
    assert not torch.equal(seen, through(uplink, values, seed=1)[0]["x"])


def test_nf4_keeps_its_own_numbers_and_takes_the_nearest_of_others() -> None:
    uplink = UPLINKS["nf4"]()
    own = {"x": 3 * torch.tensor(NUMBERS)}
    assert torch.allclose(through(uplink, own)[0]["x"], own["x"])
    seen, owed = through(uplink, {"x": torch.tensor([-1.0, 0.039, 0.041, 0.9])})
    assert torch.allclose(seen["x"], torch.tensor([-1.0, 0.0, NUMBERS[8], 1.0]))
    assert torch.allclose(owed["x"], torch.tensor([0.0, 0.039, 0.041 - NUMBERS[8], -0.1]))


def test_signs_carry_the_mean_magnitude_of_their_tensor() -> None:
    seen, owed = through(UPLINKS["sign"](), {"a": torch.tensor([[1.0, -2.0, 3.0]]), "b": torch.tensor([0.0, -1.0])})
    assert seen["a"].tolist() == [[2, -2, 2]] and seen["b"].tolist() == [0.5, -0.5]
    assert owed["a"].tolist() == [[-1, 0, 1]] and owed["b"].tolist() == [-0.5, -0.5]


def test_the_largest_entries_are_those_of_all_tensors_together() -> None:
    uplink = UPLINKS["topk"](density=0.5)
    values = {"a": torch.tensor([[3.0, -5.0], [1.0, 0.0]]), "b": torch.tensor([4.0, -0.5])}
    payload, owed = uplink.encode(values, {}, rng())
    assert payload["indices"].tolist() == [0, 1, 4] and payload["values"].tolist() == [3, -5, 4]
    seen = uplink.decode(payload, values)
    assert seen["a"].tolist() == [[3, -5], [0, 0]] and seen["b"].tolist() == [4, 0]
    assert owed["a"].tolist() == [[0, 0], [1, 0]] and owed["b"].tolist() == [0, -0.5]


# --- error feedback


@pytest.mark.parametrize("kind", WITH_FEEDBACK)
def test_sent_plus_residual_is_the_sum_of_all_updates(kind: str) -> None:
    uplink, owed, sent, given = UPLINKS[kind](), dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    for number in range(6):
        values = delta(10 * number)
        seen, owed = through(uplink, values, owed)
        sent, given = add(seen, sent) if sent else seen, add(values, given) if given else values
    total = add(sent, owed)
    assert all(torch.allclose(total[name], value, atol=1e-5) for name, value in given.items())
    assert uplink.keeps and all(value.abs().max() > 0 for value in owed.values())


def test_the_largest_of_whole_numbers_add_up_to_the_bit() -> None:
    uplink, owed, left = UPLINKS["topk"](density=0.1), dict[str, Tensor](), torch.zeros(50)
    for seed in range(20):
        values = torch.randint(-9, 10, (50,), generator=rng(seed)).float()
        seen, owed = through(uplink, {"x": values}, owed)
        left += values - seen["x"]
    assert torch.equal(owed["x"], left) and left.any()


@pytest.mark.parametrize("kind", WITH_FEEDBACK)
def test_without_error_feedback_nothing_is_kept(kind: str) -> None:
    uplink = UPLINKS[kind].model_validate({"error_feedback": False})
    seen, owed = through(uplink, delta(), {"a": torch.ones(20, 40)})
    assert owed == {} and uplink.keeps == "" and digest(seen) == digest(through(uplink, delta())[0])


def test_a_tensor_that_is_not_sent_keeps_its_residual_and_a_lower_rank_drops_it() -> None:
    uplink, memory = UPLINKS["topk"](density=0.25), {"a": torch.arange(8.0).reshape(4, 2), "b": torch.ones(3)}
    _, owed = through(uplink, {"a": torch.zeros(2, 2)}, memory)
    assert owed["a"].tolist() == [[0, 1], [2, 0]] and torch.equal(owed["b"], memory["b"])


# --- in a run


def finished(folder: Path, settings: dict[str, Any], rounds: int = 3) -> tuple[Any, Any, list[Any]]:
    fleet, worker_spec, reports = after_rounds(rounds, settings, folder)
    assert all(report.quarantined is None for report in reports)
    return fleet, worker_spec, reports


@pytest.mark.parametrize(
    "uplink",
    [{"kind": "topk", "density": 1}, {"kind": "flasc", "density_down": 1, "density_up": 1}],
    ids=lambda uplink: uplink["kind"],
)
def test_a_density_of_one_is_fedavg_to_the_bit(uplink: dict[str, Any], tmp_path: Path) -> None:
    plain, *_ = finished(tmp_path / "plain", make_regression({"name": "x"}))
    sparse, _, reports = finished(tmp_path / "sparse", make_regression({"name": "x", "uplink": uplink}))
    assert digest(sparse.adapter()) == digest(plain.adapter())
    sizes = num_bytes(plain.adapter())
    assert {report.bytes_up_delta for report in reports} == {2 * sizes}


def test_devices_keep_residuals_and_draw_by_run_round_and_device(tmp_path: Path) -> None:
    """The server's step is that of the decoded payloads, and the payload that of delta and residual."""
    fleet, spec, reports = finished(tmp_path / "run", make_regression({"name": "x", "uplink": "sign"}), 2)
    twice = [r.device for r in reports if r.round == 1 and any(q.device == r.device for q in reports if q.round == 0)]
    assert twice
    for device in twice:
        before, after = (stored(spec.store, device, round_).memory["uplink"] for round_ in (1, 2))
        assert before.keys() == after.keys() == fleet.adapter().keys() and digest(before) != digest(after)
    worker, uplink = spec.worker(), UPLINKS["int8"]()
    ours = uplink.encode(delta(), {}, worker.rng("uplink", 4, 1))[0]
    seeds_of = [seeds.generator(spec.job.seed, "uplink", *where) for where in ((4, 1), (4, 2), (5, 1))]
    same, *others = (uplink.encode(delta(), {}, one)[0] for one in seeds_of)
    assert digest(same) == digest(ours) and all(digest(other) != digest(ours) for other in others)


def test_flasc_devices_train_all_from_the_largest_entries(tmp_path: Path) -> None:
    settings = make_regression({"name": "x", "uplink": {"kind": "flasc", "density_down": 0.3, "density_up": 0.1}})
    fleet, spec, reports = finished(tmp_path / "run", settings, 2)
    size = sum(value.numel() for value in fleet.adapter().values())
    assert {(r.bytes_down, r.bytes_up) for r in reports} == {(8 * int(0.3 * size), 8 * int(0.1 * size))}
    received = spec.worker().decoded(fleet._server.broadcast(2)).shared
    full = fleet._server.learnt
    assert digest(received) == digest(fleet.adapter())
    assert sum(int(value.count_nonzero()) for value in received.values()) == int(0.3 * size)
    assert all(torch.equal(v[v != 0], full[f"shared/{name}"][v != 0]) for name, v in received.items())
    assert sum(int(value.count_nonzero()) for value in full.values()) > 0.9 * size
    scored = fleet.evaluate(1).shared.losses
    assert torch.equal(scored, spec.worker().evaluate_shared([torch.arange(40)], fleet._server.broadcast(2))[0].losses)


@pytest.mark.slow
def test_devices_send_as_many_entries_as_their_rank_has(tmp_path: Path) -> None:
    ranks = {"name": "x", "peft": {"kind": "lora", "ranks": [2, 8]}, "uplink": {"kind": "topk", "density": 0.5}}
    _, _, reports = finished(tmp_path / "ranks", make_tiny(ranks, cohort_size=6), 1)
    assert len({report.bytes_up for report in reports}) == 2


def test_a_matrix_that_is_not_trained_keeps_its_residual(tmp_path: Path) -> None:
    turns = {"name": "x", "peft": {"kind": "lora", "take_turns": True}, "uplink": "topk"}
    _, spec, _ = finished(tmp_path / "turns", make_tiny(turns, num_devices=2, cohort_size=2), 2)
    first, second = (stored(spec.store, 0, round_).memory["uplink"] for round_ in (1, 2))
    waiting = [name for name in first if name.endswith((A, B))]
    assert first.keys() < second.keys() and len({name[-len(A) :] for name in waiting}) == 1
    assert all(torch.equal(first[name], second[name]) for name in waiting)


# --- combinations

BESIDE: dict[str, dict[str, Any]] = {
    "nova": {"aggregator": "nova"},
    "krum": {"aggregator": "krum"},
    "median": {"aggregator": "median"},
    "feddyn": {"aggregator": "feddyn", "objective": "feddyn"},
    "fedfisher": {"aggregator": "fedfisher"},
    "fisher_merging": {"aggregator": "fisher_merging"},
    "fipa": {"aggregator": {"kind": "fipa", "warmup_rounds": 0}},
    "moon": {"objective": "moon"},
    "ditto": {"solver": "ditto"},
}


@pytest.mark.parametrize("name", in_turn(list(BESIDE), 2, "parts beside a codec"))
@pytest.mark.parametrize("uplink", ["int8", "sign"])
def test_the_server_takes_encoded_updates_of_all_methods(uplink: str, name: str, tmp_path: Path) -> None:
    """Nothing that other parts check rests on the exact delta."""
    settings = make_regression({"name": "x", "uplink": uplink, **BESIDE[name]}, cohort_size=6)
    plain, *_ = finished(tmp_path / "run", settings, 2)
    assert all(value.isfinite().all() for value in plain.adapter().values())


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"aggregator": "median", "uplink": "topk"}, "compares the devices' values of each entry, but uplink 'topk'"),
        ({"aggregator": "trimmed_mean", "uplink": "flasc"}, "sends only some entries; choose another uplink"),
        ({"aggregator": "flexlora", "uplink": "flasc"}, "adds deltas to the tensors that devices received"),
        ({"peft": {"kind": "lora", "ranks": [2, 8]}, "uplink": "flasc"}, "set one of: none, bf16, fp16, int8"),
        ({"objective": "scaffold", "uplink": "nf4"}, "but uplink 'nf4' changes it on its way; set uplink: none"),
        ({"sharing": "none", "uplink": "int8"}, "needs shared tensors, but sharing 'none' shares nothing"),
        ({"solver": "idle", "uplink": "int8"}, "trains nothing, so uplink 'int8' has no effect"),
        ({"pooled": True, "uplink": "int8"}, "uplink 'int8' as it is set has no effect"),
    ],
    ids=str,
)
def test_methods_that_do_not_fit_a_codec_are_refused(method: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Method.model_validate(method)


def test_a_density_of_one_fits_every_aggregator() -> None:
    for aggregator in ("median", "flexlora"):
        Method.model_validate({"aggregator": aggregator, "uplink": {"kind": "topk", "density": 1}})
        Method.model_validate({"aggregator": aggregator, "uplink": "int8"})
