"""Which neurons of personal layers may move, by hand-worked Fisher information."""

from __future__ import annotations

import pytest
import torch
from conftest import shard_of
from torch import Tensor, nn

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.model_types import Batch, Outputs, Work
from fibec_ray.models.alone import Alone
from fibec_ray.parts.mask.base import Mask, may_move
from fibec_ray.parts.mask.by_neuron import RandomNeurons, keep_top, matrix_kind
from fibec_ray.parts.mask.fisher_neurons import FisherNeurons
from fibec_ray.tensors import Tensors

A, B = "m.layer.{}.query.lora_A.weight", "m.layer.{}.query.lora_B.weight"
NAME = B.format(0)


class OneMatrix(Alone):
    """Loss 1 * w_0 x + 2 * w_1 x + 0 * w_2 x with x the token id: sample x has squared gradients [x^2, 4 x^2, 0].

    A small model of its own that implements what `LocalModel` asks of a scanned model.
    """

    def __init__(self) -> None:
        linear = nn.Linear(1, 3, bias=False)
        self.holders: dict[str, nn.Module] = {NAME.removesuffix(".weight"): linear}
        self.trainable: dict[str, nn.Parameter] = {NAME: linear.weight}
        self.num_layers, self.work, self.num_passes = 1, Work(), 0

    def is_adapter(self, name: str) -> bool:
        return True

    def train(self, mode: bool) -> None:
        """No dropout."""

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        self.num_passes += 1
        (linear,) = self.holders.values()
        out = linear(batch.inputs["input_ids"].float())
        return Outputs(out @ torch.tensor([1.0, 2.0, 0.0]), out)


def scan_of(*ids: int, model: OneMatrix | None = None) -> FisherScan:
    """Its diagonal is [m, 4 m, 0] with m the mean of the squares of ids."""
    shard = shard_of([[i] for i in ids])
    return FisherScan(model or OneMatrix(), shard, [torch.arange(len(ids))], [NAME], rng())  # type: ignore[arg-type]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept(mask: FisherNeurons, memory: Tensors, names: list[str]) -> Tensors:
    """The mask of a device that takes part with this memory. Fisher information is there, so nothing is scanned."""
    return may_move(mask.refresh(memory, scan_of(1), names, rng()), names)


def memory_of(fisher: Tensors, ratio: float = 0.3) -> Tensors:
    fisher = {f"fisher/{name}": value for name, value in fisher.items()}
    return fisher | {"participations": torch.tensor(0), "ratio": torch.tensor(ratio)}


def rows(keep: Tensor) -> list[bool]:
    """One bool for each row, all of whose entries are alike."""
    assert (keep == keep[:, :1]).all()
    return keep[:, 0].tolist()


FISHER = {
    A.format(0): torch.tensor([[1.0, 1.0, 1.0], [0.0, 5.0, 0.0]]),  # rows 3, 5
    B.format(0): torch.tensor([[0.1, 0.1], [0.3, 0.2], [0.0, 0.1], [0.2, 0.2]]),  # rows .2, .5, .1, .4
    A.format(1): torch.tensor([[4.0, 0.0, 0.0], [0.0, 1.0, 1.0]]),  # rows 4, 2
    B.format(1): torch.tensor([[0.6, 0.0], [0.0, 0.0], [0.0, 0.3], [0.05, 0.0]]),  # rows .6, 0, .3, .05
}


def test_half_of_the_neurons_of_each_kind_by_hand() -> None:
    """A: the top two of 3, 5, 4, 2 are 5 and 4. B: of .2, .5, .1, .4, .6, 0, .3, .05 the four above .2."""
    keep = keep_top(FISHER, 0.5, "row")
    assert list(keep) == list(FISHER)
    assert all(keep[name].dtype == torch.bool and keep[name].shape == value.shape for name, value in FISHER.items())
    assert [rows(keep[A.format(layer)]) for layer in (0, 1)] == [[False, True], [True, False]]
    assert rows(keep[B.format(0)]) == [False, True, False, True]
    assert rows(keep[B.format(1)]) == [True, False, True, False]


def test_kinds_are_ranked_apart() -> None:
    """Any row of A has more than any of B, as it has more columns; each kind keeps its quarter all the same."""
    keep = keep_top(FISHER, 0.25, "row")
    assert [rows(keep[A.format(layer)]) for layer in (0, 1)] == [[False, True], [False, False]]
    assert [rows(keep[B.format(layer)]) for layer in (0, 1)] == [[False, True, False, False], [True] + [False] * 3]


def test_the_kind_is_the_last_module_of_the_name() -> None:
    assert matrix_kind("base_model.model.layer.0.query.lora_A.weight") == "lora_A.weight"
    assert matrix_kind("head.bias") == "head.bias"


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.1, 1), (0.25, 1), (0.26, 2), (0.3, 2), (0.75, 3), (1.0, 4)])
def test_the_number_kept_is_rounded_up(ratio: float, count: int) -> None:
    """Of four rows; 4 * .25 is one row and not two."""
    keep = keep_top({NAME: torch.tensor([[4.0], [3.0], [2.0], [1.0]])}, ratio, "row")
    assert rows(keep[NAME]) == [True] * count + [False] * (4 - count)


def test_float_noise_keeps_no_neuron_more() -> None:
    """.55 of 100 rows are 55, though the product is 55.00000000000001 in floats; so for every percentage."""
    values = torch.arange(100, 0, -1.0).unsqueeze(1)
    assert 0.55 * 100 > 55
    for percent in range(101):
        assert int(keep_top({NAME: values}, percent / 100, "row")[NAME].sum()) == percent


def test_ties_go_to_the_earlier_row() -> None:
    keep = keep_top({B.format(0): torch.ones(3, 2), B.format(1): torch.ones(3, 2)}, 0.5, "row")
    assert rows(keep[B.format(0)]) == [True, True, True] and rows(keep[B.format(1)]) == [False, False, False]


def test_neurons_without_fisher_information_are_never_chosen() -> None:
    """At the start B = 0 and A scores exactly 0: nothing of A moves, though a share of it was asked for."""
    fisher = {A.format(0): torch.zeros(4, 3), B.format(0): torch.tensor([[0.0], [2.0], [0.0], [0.0]])}
    keep = keep_top(fisher, 0.5, "row")
    assert not keep[A.format(0)].any()
    assert rows(keep[B.format(0)]) == [False, True, False, False]


def test_a_vector_is_masked_entry_by_entry() -> None:
    keep = keep_top({"head.bias": torch.tensor([1.0, 3.0, 2.0])}, 0.5, "row")
    assert keep["head.bias"].tolist() == [False, True, True]


def test_ratio_one_is_no_mask_and_ratio_zero_freezes() -> None:
    """With ratio 1, rows without Fisher information move too."""
    names = list(FISHER)
    everything, nothing = (kept(FisherNeurons(), memory_of(FISHER, ratio), names) for ratio in (1.0, 0.0))
    assert everything.keys() == nothing.keys() == FISHER.keys()
    assert all(value.all() for value in everything.values()) and not any(value.any() for value in nothing.values())


def test_only_personal_tensors_compete() -> None:
    """Layer 0 is shared: of layer 1's rows .6, 0, .3, .05 alone, half are .6 and .3; of 4 and 2, 4."""
    names = [A.format(1), B.format(1)]
    keep = kept(FisherNeurons(), memory_of(FISHER, 0.5), names)
    assert list(keep) == names
    assert rows(keep[A.format(1)]) == [True, False] and rows(keep[B.format(1)]) == [True, False, True, False]


def test_the_first_fisher_information_is_that_of_all_data() -> None:
    """Ids 1 and 3: mean square 5, so [5, 20, 0]; half of three rows, rounded up, would be two; the last has none."""
    mask = FisherNeurons(ratio=1 / 3)
    memory = mask.prepare(scan_of(1, 3), rng())
    assert memory[f"fisher/{NAME}"].flatten().tolist() == [5, 20, 0] and int(memory["participations"]) == 0
    assert rows(kept(mask, memory, [NAME])[NAME]) == [False, True, False]
    assert rows(kept(mask, memory | {"ratio": torch.tensor(0.9)}, [NAME])[NAME]) == [True, True, False]


def test_momentum_over_refreshes_by_hand() -> None:
    """gamma = 3/4; means of squares 4, 8, 16: F = 4, then 3 + 2 = 5, then 3.75 + 4 = 7.75; twice the root is row 1."""
    mask = FisherNeurons(gamma=0.75, source="pass")
    memory = mask.prepare(scan_of(2, 2), rng())
    found = [memory[f"fisher/{NAME}"].flatten().tolist()]
    for scan in (scan_of(0, 4), scan_of(4)):
        memory = mask.refresh(memory, scan, [NAME], rng())
        found.append(memory[f"fisher/{NAME}"].flatten().tolist())
    assert found == [[4, 16, 0], [5, 20, 0], [7.75, 31, 0]] and int(memory["participations"]) == 2


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, [16, 64, 0]), (1.0, [4, 16, 0])])
def test_gamma_zero_follows_and_gamma_one_stays(gamma: float, expected: list[float]) -> None:
    mask = FisherNeurons(gamma=gamma, source="pass")
    memory = mask.refresh(mask.prepare(scan_of(2), rng()), scan_of(4), [NAME], rng())
    assert memory[f"fisher/{NAME}"].flatten().tolist() == expected


def test_refresh_every_counts_participations() -> None:
    """Every third: participations 0 and 3 scan, the others do not even run the model."""
    mask, model = FisherNeurons(refresh_every=3, gamma=0.0, source="pass"), OneMatrix()
    memory = mask.prepare(scan_of(9), rng())
    passes, values = [], []
    for x in (1, 2, 3, 4, 5):
        memory = mask.refresh(memory, scan_of(x, model=model), [NAME], rng())
        passes.append(model.num_passes)
        values.append(float(memory[f"fisher/{NAME}"][0]))
    assert passes == [1, 1, 1, 2, 2] and values == [1, 1, 1, 16, 16] and int(memory["participations"]) == 5


def test_refresh_forgets_what_is_shared_and_leaves_the_old_memory_alone() -> None:
    mask, memory = (
        FisherNeurons(gamma=0.5, source="pass"),
        memory_of({**FISHER, NAME: torch.tensor([[4.0], [0.0], [2.0]])}),
    )
    new = mask.refresh(memory, scan_of(2), [NAME], rng())
    assert set(new) == {f"fisher/{NAME}", f"kept/{NAME}", "participations", "ratio"}
    assert new[f"fisher/{NAME}"].flatten().tolist() == [4, 8, 1]
    assert memory[f"fisher/{NAME}"].flatten().tolist() == [4, 0, 2] and int(memory["participations"]) == 0


def test_the_neutral_mask_masks_nothing_and_scans_nothing() -> None:
    mask, model = Mask(), OneMatrix()
    scan = scan_of(1, model=model)
    memory = mask.refresh(mask.prepare(scan, rng()), scan, [NAME], rng())
    assert (memory, may_move(memory, [NAME]), model.num_passes) == ({}, {}, 0)
    assert not mask.needs and "personal" in FisherNeurons().needs


def test_ranks_are_kept_as_pairs_of_a_row_and_a_column() -> None:
    """Layer 0: A rows 3, 5 and B columns .6, .5: ranks 3.6, 5.5. Layer 1: 4 and 2, and .65 and .3: 4.65, 2.3."""
    keep = keep_top(FISHER, 0.5, "rank")
    assert list(keep) == list(FISHER)
    assert [rows(keep[A.format(layer)]) for layer in (0, 1)] == [[False, True], [True, False]]
    for layer, columns in ((0, [False, True]), (1, [True, False])):
        assert keep[B.format(layer)].tolist() == [columns] * 4


def test_a_matrix_without_a_pair_has_rows_by_rank_too() -> None:
    keep = keep_top({B.format(0): torch.tensor([[1.0], [3.0]]), "head.bias": torch.tensor([1.0, 2.0])}, 0.5, "rank")
    assert rows(keep[B.format(0)]) == [False, True] and keep["head.bias"].tolist() == [False, True]


def test_the_log_counts_neurons_and_not_rows() -> None:
    """Of 4 ranks, 2 are kept; by row, half of 4 rows of A and of 8 of B; one row scores 0."""
    for neuron, count in (("rank", 2), ("row", 2 + 4)):
        mask = FisherNeurons(neuron=neuron)  # type: ignore[arg-type]
        keep = kept(mask, memory_of(FISHER, 0.5), list(FISHER))
        assert sum(int(value.sum()) for value in mask.neurons(keep).values()) == count


def test_fisher_information_from_training_is_absorbed_after_it() -> None:
    """gamma = 1/2: F = [4, 16, 0] at the start; training met [0, 0, 8]: [2, 8, 4] for the next mask, with no pass."""
    mask, model = FisherNeurons(gamma=0.5, ratio=1 / 3), OneMatrix()
    memory = mask.refresh(mask.prepare(scan_of(2), rng()), scan_of(9, model=model), [NAME], rng())
    assert rows(may_move(memory, [NAME])[NAME]) == [False, True, False] and mask.watches(memory)
    memory = mask.absorb(memory, {NAME: torch.tensor([[0.0], [0.0], [8.0]])})
    assert memory[f"fisher/{NAME}"].flatten().tolist() == [2, 8, 4]
    memory = mask.absorb(mask.refresh(memory, scan_of(9), [NAME], rng()), {NAME: torch.tensor([[0.0], [0.0], [30.0]])})
    memory = mask.refresh(memory, scan_of(9, model=model), [NAME], rng())
    assert memory[f"fisher/{NAME}"].flatten().tolist() == [1, 4, 17] and model.num_passes == 0
    assert rows(may_move(memory, [NAME])[NAME]) == [False, False, True]


def test_gradients_are_recorded_in_every_nth_participation() -> None:
    mask = FisherNeurons(refresh_every=2)
    assert [mask.watches({"participations": torch.tensor(n)}) for n in (1, 2, 3, 4)] == [False, True, False, True]
    assert not FisherNeurons(source="pass").watches({"participations": torch.tensor(2)})


def test_a_device_that_was_not_opened_starts_with_a_pass() -> None:
    """Whatever the source: its first mask needs Fisher information."""
    mask, model = FisherNeurons(start_at="first_participation"), OneMatrix()
    memory = mask.refresh({}, scan_of(2, model=model), [NAME], rng())
    assert memory[f"fisher/{NAME}"].flatten().tolist() == [4, 16, 0] and model.num_passes == 1
    assert float(memory["ratio"]) == 0.3 and int(memory["participations"]) == 1


def test_settings_of_a_mask_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="ratio has an effect only with ratio_by: fixed"):
        FisherNeurons(ratio=0.5, ratio_by="lossless_gap")
    with pytest.raises(ValueError, match="spectrum has no effect unless ratio_by is lossless_gap or slq_plateau"):
        FisherNeurons(spectrum={"max_samples": 3})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="spectrum.step has an effect only with ratio_by: lossless_gap"):
        FisherNeurons(spectrum={"step": 0.1}, ratio_by="slq_plateau")  # type: ignore[arg-type]


def test_random_neurons_are_as_many_by_lot() -> None:
    """2 of 3 rows, the same ones for good, whatever the Fisher information; others by another generator."""
    mask, model = RandomNeurons(ratio=0.6), OneMatrix()
    scan = scan_of(1, model=model)
    memories = [mask.refresh({}, scan, [NAME], rng(seed)) for seed in range(20)]
    masks = [rows(may_move(memory, [NAME])[NAME]) for memory in memories]
    assert all(sum(one) == 2 for one in masks) and len({tuple(one) for one in masks}) == 3
    again = mask.refresh(memories[0], scan, [NAME], rng(99))
    assert rows(may_move(again, [NAME])[NAME]) == masks[0] and int(again["participations"]) == 2
    assert model.num_passes == 0 and not mask.needs_setup and not mask.watches(again)


def test_random_neurons_can_be_drawn_anew() -> None:
    mask, scan, memory, seen = RandomNeurons(ratio=0.3, redraw_every=2), scan_of(1), {}, []
    for round_ in range(12):
        memory = mask.refresh(memory, scan, [NAME], rng(round_))
        seen.append(rows(may_move(memory, [NAME])[NAME]))
    assert all(seen[i] == seen[i + 1] for i in range(0, 12, 2)) and len({tuple(one) for one in seen}) > 1
    nothing = RandomNeurons(ratio=0.0)
    assert not may_move(nothing.refresh({}, scan, [NAME], rng()), [NAME])[NAME].any()


@pytest.mark.parametrize("mask", [FisherNeurons(), FisherNeurons(source="pass"), RandomNeurons()])
def test_without_personal_tensors_nothing_is_scanned(mask: Mask) -> None:
    """As when the spectrum asks to share every layer."""
    model = OneMatrix()
    memory = mask.refresh(mask.prepare(scan_of(1), rng()), scan_of(1, model=model), [], rng())
    assert may_move(memory, []) == {} and model.num_passes == 0
    assert mask.refresh(memory, scan_of(1, model=model), [], rng()).keys() == memory.keys()
