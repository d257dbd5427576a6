"""Device states on disk: versions by round, a retry that starts where the first try did, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fibec_ray.errors import RunDirError
from fibec_ray.learning.store import StateStore
from fibec_ray.tensors import digest
from fibec_ray.types import OPENING_ROUND, DeviceState


def state(value: float) -> DeviceState:
    return DeviceState({"a": torch.full((2,), value)}, {"mask": {"fisher": torch.tensor([value])}})


def value_of(found: DeviceState) -> float:
    assert torch.equal(found.personal["a"], found.memory["mask"]["fisher"].expand(2))
    return float(found.personal["a"][0])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_device_without_history_is_empty(tmp_path: Path) -> None:
    assert StateStore(tmp_path).load(3, before=5) == DeviceState()


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    given = DeviceState(
        {"layer.0.lora_A.weight": torch.tensor([0.1, float("-0.0"), 1e-40])},
        {
            "curriculum": {"order": torch.tensor([2, 0, 1]), "sample_difficulty": torch.rand(3).double()},
            "mask": {"keep/layer.0": torch.tensor([True, False]), "half": torch.rand(2).bfloat16()},
        },
    )
    StateStore(tmp_path).save(0, 4, given)
    found = StateStore(tmp_path).load(0, before=5)
    assert digest(found.flat()) == digest(given.flat())
    assert found.memory.keys() == given.memory.keys()


def test_a_view_is_saved_as_what_it_shows(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    StateStore(tmp_path).save(0, 0, DeviceState({"t": whole.t(), "row": whole[1]}))
    found = StateStore(tmp_path).load(0, before=1).personal
    assert torch.equal(found["t"], whole.t()) and torch.equal(found["row"], whole[1])


def test_a_round_starts_from_the_newest_version_before_it(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(7, OPENING_ROUND, state(-1))
    store.save(7, 2, state(2))
    assert store.load(7, before=OPENING_ROUND) == DeviceState()
    assert [value_of(store.load(7, before=t)) for t in (0, 1, 2)] == [-1, -1, -1]
    assert [value_of(store.load(7, before=t)) for t in (3, 10)] == [2, 2]


def test_devices_do_not_meet(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(1, 0, state(1))
    store.save(11, 0, state(11))
    assert [value_of(store.load(device, before=1)) for device in (1, 11)] == [1, 11]
    assert store.load(111, before=1) == DeviceState()


@pytest.mark.parametrize(
    ("starts", "left"),
    [
        ([], [9, 10]),  # the state now, and the one that a retry of round 10 starts from
        ([11, 10], [9, 10]),
        ([10, 9], [3, 9, 10]),
        ([3], [0, 9, 10]),
        ([0, 5], [-1, 3, 9, 10]),
        ([-1], [9, 10]),
    ],
)
def test_what_a_retry_or_a_resumed_run_may_start_from_stays(starts: list[int], left: list[int], tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for round_ in (OPENING_ROUND, 0, 3, 9, 10):
        store.save(0, round_, state(round_))
    store.save(1, 0, state(0))
    before = {start: store.newest(0, start) for start in starts}
    store.prune([0], starts)
    assert sorted(store.versions(0)) == left
    assert {start: store.newest(0, start) for start in starts} == before
    assert store.versions(1) == [0]


def test_a_device_never_removes_a_version(tmp_path: Path) -> None:
    """The driver may have to go back further than the device knows."""
    store = StateStore(tmp_path)
    for round_ in range(5):
        store.save(0, round_, state(round_))
    assert [value_of(store.load(0, before=t + 1)) for t in range(5)] == [0, 1, 2, 3, 4]


def test_rewinding_forgets_later_rounds_and_what_was_half_written(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for device, round_ in ((0, OPENING_ROUND), (0, 2), (0, 3), (7, 3), (7, 4)):
        store.save(device, round_, state(round_))
    (tmp_path / "00007" / ".5.safetensors.123.part").write_bytes(b"half")
    store.rewind(3)
    assert files(tmp_path) == ["00000/-1.safetensors", "00000/2.safetensors"]
    store.rewind(OPENING_ROUND)
    assert files(tmp_path) == []


def test_the_digest_is_in_the_file_s_head(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(0, 1, state(1))
    assert store.digest(0, 1) == digest(state(1).flat())
    assert store.digest(0, 2) == "" == store.digest(1, 1)


def test_a_changed_bit_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(0, 1, state(1))
    path = store.path(0, 1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunDirError, match=r"1\.safetensors: the device's state is damaged"):
        store.load(0, before=2)


def test_a_retried_round_starts_from_the_same_state(tmp_path: Path) -> None:
    """The first try had written its result before its actor died; the second must not build upon it."""
    store = StateStore(tmp_path)
    store.save(0, 3, state(3))
    store.save(0, 5, state(5))
    for _ in range(3):
        assert value_of(store.load(0, before=5)) == 3
        store.save(0, 5, state(5))
    assert value_of(store.load(0, before=6)) == 5


def test_another_process_sees_the_same_versions(tmp_path: Path) -> None:
    StateStore(tmp_path).save(0, 1, state(1))
    assert value_of(StateStore(tmp_path).load(0, before=2)) == 1


def test_a_state_without_tensors_writes_nothing(tmp_path: Path) -> None:
    StateStore(tmp_path).save(0, 0, DeviceState(memory={"mask": {}}))
    assert files(tmp_path) == []


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_file_cut_short_is_an_error_that_names_it(kept: int, tmp_path: Path) -> None:
    store, path = StateStore(tmp_path), tmp_path / "00000" / "0.safetensors"
    store.save(0, 0, state(1))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RunDirError, match="the device's state cannot be read") as caught:
        store.load(0, before=1)
    assert str(caught.value).startswith(f"{path}: ")


def test_what_a_dead_process_left_half_written_is_no_version(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save(0, 0, state(0))
    (tmp_path / "00000" / ".1.safetensors.123.part").write_bytes(b"half")
    assert value_of(store.load(0, before=5)) == 0
    store.save(0, 1, state(1))
    assert value_of(store.load(0, before=5)) == 1


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
