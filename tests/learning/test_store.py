"""Device states on disk: one file for each round that wrote one, read only as the state that was accepted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fibec_ray.errors import RunDirError
from fibec_ray.learning.store import StateStore
from fibec_ray.tensors import digest
from fibec_ray.types import SETUP_ROUND, DeviceState, StateRef


def state(value: float) -> DeviceState:
    return DeviceState({"a": torch.full((2,), value)}, {"mask": {"fisher": torch.tensor([value])}})


def value_of(found: DeviceState) -> float:
    assert torch.equal(found.personal["a"], found.memory["mask"]["fisher"].expand(2))
    return float(found.personal["a"][0])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_device_without_history_is_empty(tmp_path: Path) -> None:
    assert StateStore(tmp_path).load(3, None) == DeviceState()


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    given = DeviceState(
        {"layer.0.lora_A.weight": torch.tensor([0.1, float("-0.0"), 1e-40])},
        {
            "curriculum": {"order": torch.tensor([2, 0, 1]), "sample_difficulty": torch.rand(3).double()},
            "mask": {"keep/layer.0": torch.tensor([True, False]), "half": torch.rand(2).bfloat16()},
        },
    )
    written = StateStore(tmp_path).save(0, 4, given)
    found = StateStore(tmp_path).load(0, StateRef(4, written))
    assert digest(found.flat()) == digest(given.flat()) == written
    assert found.memory.keys() == given.memory.keys()


def test_a_view_is_saved_as_what_it_shows(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    written = StateStore(tmp_path).save(0, 0, DeviceState({"t": whole.t(), "row": whole[1]}))
    found = StateStore(tmp_path).load(0, StateRef(0, written)).personal
    assert torch.equal(found["t"], whole.t()) and torch.equal(found["row"], whole[1])


def test_a_state_is_read_by_its_name_whatever_else_was_stored(tmp_path: Path) -> None:
    """A quarantined round, or one that ran twice, leaves files that no later round starts from."""
    store = StateStore(tmp_path)
    refs = {round_: StateRef(round_, store.save(7, round_, state(round_))) for round_ in (SETUP_ROUND, 2, 5)}
    assert [value_of(store.load(7, ref)) for ref in refs.values()] == [-1, 2, 5]
    assert store.versions(7) == [-1, 2, 5] and store.versions(70) == []


def test_devices_have_files_of_their_own(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    refs = {device: StateRef(0, store.save(device, 0, state(device))) for device in (1, 11)}
    assert [value_of(store.load(device, ref)) for device, ref in refs.items()] == [1, 11]


@pytest.mark.parametrize(
    ("needed", "before", "left"),
    [([], 11, []), ([3, 10], 11, [3, 10]), ([9], 10, [9, 10]), ([], SETUP_ROUND, [-1, 0, 3, 9, 10])],
)
def test_pruning_keeps_what_is_needed_and_what_is_newer(
    needed: list[int], before: int, left: list[int], tmp_path: Path
) -> None:
    store = StateStore(tmp_path)
    for round_ in (SETUP_ROUND, 0, 3, 9, 10):
        store.save(0, round_, state(round_))
    store.save(1, 0, state(0))
    store.prune([0], {(0, version) for version in needed}, before)
    assert store.versions(0) == left and store.versions(1) == [0]


def test_rewinding_deletes_later_rounds_and_what_was_half_written(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for device, round_ in ((0, SETUP_ROUND), (0, 2), (0, 3), (7, 3), (7, 4)):
        store.save(device, round_, state(round_))
    (tmp_path / "00007" / ".5.safetensors.123.part").write_bytes(b"half")
    store.rewind(3)
    assert files(tmp_path) == ["00000/-1.safetensors", "00000/2.safetensors"]
    store.rewind(SETUP_ROUND)
    assert files(tmp_path) == []


STRAYS = ("1 (copy).safetensors", "x.safetensors", "--1.safetensors", "\u0663.safetensors", ".1.safetensors")


def test_files_with_other_names_are_left_alone(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(0, 1, state(1))
    for name in STRAYS:
        (tmp_path / "00000" / name).write_bytes(b"not ours")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "5.safetensors").write_bytes(b"not ours")
    assert store.versions(0) == [1]
    store.prune([0], [], 9)
    store.rewind(SETUP_ROUND)
    assert files(tmp_path) == sorted([f"00000/{name}" for name in STRAYS] + ["notes/5.safetensors"])


def test_a_changed_bit_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    ref = StateRef(1, store.save(0, 1, state(1)))
    path = store.path(0, 1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for known in (ref, StateRef(1, "")):
        with pytest.raises(RunDirError, match=r"1\.safetensors: the device's state is damaged"):
            store.load(0, known)


def test_another_state_under_the_right_name_is_refused(tmp_path: Path) -> None:
    """Two devices' files that changed places, one of an older round, one of another run: each is whole in itself."""
    store = StateStore(tmp_path)
    ref = StateRef(1, store.save(0, 1, state(1)))
    store.save(1, 1, state(2))
    store.path(1, 1).replace(store.path(0, 1))
    with pytest.raises(RunDirError, match="is another state than the one that the run accepted in round 2"):
        store.read(0, ref)


def test_a_missing_state_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="is missing; put the file back, or start a new run"):
        StateStore(tmp_path).load(0, StateRef(3, "x"))


def test_another_process_sees_the_same_state(tmp_path: Path) -> None:
    written = StateStore(tmp_path).save(0, 1, state(1))
    assert value_of(StateStore(tmp_path).load(0, StateRef(1, written))) == 1


def test_a_state_without_tensors_writes_nothing(tmp_path: Path) -> None:
    assert StateStore(tmp_path).save(0, 0, DeviceState(memory={"mask": {}})) == ""
    assert files(tmp_path) == []


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_file_cut_short_is_an_error_that_names_it(kept: int, tmp_path: Path) -> None:
    store, path = StateStore(tmp_path), tmp_path / "00000" / "0.safetensors"
    ref = StateRef(0, store.save(0, 0, state(1)))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RunDirError, match="the device's state cannot be read") as caught:
        store.load(0, ref)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_a_dead_process_left_half_written_is_not_a_version(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(0, 0, state(0))
    (tmp_path / "00000" / ".1.safetensors.123.part").write_bytes(b"half")
    assert store.versions(0) == [0]


def test_a_save_that_fails_leaves_the_old_state_and_nothing_else(tmp_path: Path) -> None:
    store, path = StateStore(tmp_path), tmp_path / "00000"
    store.save(0, 0, state(0))
    (path / "1.safetensors").mkdir()  # the rename will fail, as root may write everywhere
    (path / "1.safetensors" / "x").touch()
    with pytest.raises(RunDirError, match="the device's state cannot be written"):
        store.save(0, 1, state(1))
    assert files(tmp_path) == ["00000/0.safetensors", "00000/1.safetensors/x"]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match="cannot be written"):
        StateStore(tmp_path / "file").save(0, 0, state(0))
