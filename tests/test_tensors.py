"""Arithmetic, bytes and digests of named tensors."""

from __future__ import annotations

import pytest
import torch

from fibec_ray.tensors import (
    Tensors,
    _raw,
    add,
    all_finite,
    clone,
    digest,
    drop,
    num_bytes,
    select,
    subtract,
    under_prefix,
    weighted_mean,
    with_prefix,
)

MIXED = {
    "b": torch.tensor([[1.5, -2.0], [0.0, 4.0]]),
    "a": torch.tensor([1, 2, 3]),
    "half": torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
    "keep": torch.tensor([True, False]),
    "count": torch.tensor(7),
    "none": torch.empty(0, 5),
}
"""4 * 4 + 3 * 8 + 3 * 2 + 2 * 1 + 8 + 0 = 56 bytes"""


def pack(tensors: Tensors) -> bytes:
    """The payload of `num_bytes`: raw little-endian values in name order."""
    return b"".join(_raw(tensors[name]) for name in sorted(tensors))


def test_the_payload_is_as_long_as_it_says() -> None:
    assert len(pack(MIXED)) == num_bytes(MIXED) == 56
    assert pack({}) == b"" and num_bytes({}) == 0


def test_the_payload_is_the_values_in_name_order() -> None:
    """Little-endian: 1.0f is 00 00 80 3f, 2 is 02 and seven zero bytes."""
    tensors = {"z": torch.tensor([1.0]), "a": torch.tensor([2])}
    assert pack(tensors) == bytes([2, 0, 0, 0, 0, 0, 0, 0]) + bytes([0, 0, 0x80, 0x3F])
    assert pack(dict(reversed(tensors.items()))) == pack(tensors)


def test_the_payload_follows_values_and_not_memory() -> None:
    value = torch.arange(6.0).view(2, 3)
    assert pack({"w": value.T}) == pack({"w": value.T.contiguous()}) != pack({"w": value})
    assert digest({"w": value.T}) == digest({"w": value.T.contiguous()})
    assert num_bytes({"w": value[:, :2]}) == len(pack({"w": value[:, :2]})) == 16


CHANGED: dict[str, Tensors] = {
    "name": {"v": torch.zeros(4)},
    "dtype of the same bits": {"w": torch.zeros(4, dtype=torch.int32)},
    "shape": {"w": torch.zeros(2, 2)},
    "one bit: the sign of a zero": {"w": torch.tensor([0.0, 0.0, -0.0, 0.0])},
    "one bit: the smallest number": {"w": torch.tensor([0.0, 0.0, 0.0, 1e-45])},
    "one more, empty": {"w": torch.zeros(4), "x": torch.empty(0)},
    "none": {},
}


@pytest.mark.parametrize("other", CHANGED.values(), ids=CHANGED)
def test_a_digest_sees_every_change(other: Tensors) -> None:
    assert digest(other) != digest({"w": torch.zeros(4)})


def test_equal_tensors_have_equal_digests_in_any_order() -> None:
    assert digest(dict(reversed(clone(MIXED).items()))) == digest(MIXED)
    assert digest({"w": torch.nn.Parameter(torch.zeros(4))}) == digest({"w": torch.zeros(4)})


def test_a_clone_is_on_its_own() -> None:
    source = {"w": torch.ones(2, requires_grad=True)}
    copy = clone(source)
    copy["w"].add_(1)
    assert source["w"].tolist() == [1, 1] and not copy["w"].requires_grad


def test_select_and_drop_share_out_the_names() -> None:
    assert list(select(MIXED, {"a", "half", "missing"})) == ["a", "half"]
    assert list(drop(MIXED, {"a", "half", "missing"})) == ["b", "keep", "count", "none"]


def test_add_and_subtract_go_over_the_names_of_the_left() -> None:
    left, right = {"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 5.0]), "more": torch.zeros(1)}
    assert subtract(left, right)["w"].tolist() == [2, -4] and list(subtract(left, right)) == ["w"]
    assert add(left, right)["w"].tolist() == [4, 6] and list(add(left, right)) == ["w"]


def test_prefixes_come_off_as_they_went_on() -> None:
    joined = with_prefix("one", {"w": torch.zeros(1)}) | with_prefix("one/two", {"w": torch.ones(1)})
    assert set(joined) == {"one/w", "one/two/w"}
    assert set(under_prefix("one", joined)) == {"w", "two/w"} and under_prefix("on", joined) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_all_finite_sees_a_single_value(value: float) -> None:
    assert all_finite({}) and all_finite(MIXED)
    assert not all_finite({**MIXED, "w": torch.tensor([1.0, value])})


def test_weighted_mean_by_hand() -> None:
    """(1 * 1 + 3 * 5) / 4 = 4 and (1 * 2 + 3 * -2) / 4 = -1."""
    found = weighted_mean([(1, {"w": torch.tensor([1.0, 2.0])}), (3, {"w": torch.tensor([5.0, -2.0])})])
    assert found["w"].tolist() == [4.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weight", [1, 3, 7.3, 1e-9, 2**53])
def test_the_mean_of_one_update_has_the_bits_of_its_sum_in_float64(dtype: torch.dtype, weight: float) -> None:
    numbers = torch.randn(4096, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    limits = torch.finfo(dtype)
    ends = torch.tensor([0.0, -0.0, limits.max, limits.min, limits.tiny, -limits.smallest_normal / 3])
    value = torch.cat([numbers, numbers.exp() * 1e-3, ends]).to(dtype)
    if dtype == torch.float64:
        value = value[value.abs() < 1e100]  # its largest numbers overflow in the sum
    expected = ((torch.zeros_like(value, dtype=torch.float64) + weight * value.double()) / weight).to(dtype)
    found = weighted_mean([(weight, {"w": value})])["w"]
    assert digest({"w": found}) == digest({"w": expected}) and found.data_ptr() != value.data_ptr()


def test_weighted_mean_of_nothing_is_nothing() -> None:
    assert weighted_mean(iter(())) == {} and weighted_mean([(2.0, {})]) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weighted_mean_keeps_dtypes_and_its_inputs(dtype: torch.dtype) -> None:
    """It sums in float64: 2^24 + 1 + 1 in float32 would lose both ones."""
    values = [torch.tensor([value], dtype=dtype) for value in (2.0**24, 1.0, 1.0)]
    found = weighted_mean((1.0, {"w": value}) for value in values)["w"]
    assert found.dtype == dtype and found.item() == torch.tensor((2.0**24 + 2) / 3, dtype=dtype).item()
    assert [value.item() for value in values] == [2.0**24, 1.0, 1.0]
