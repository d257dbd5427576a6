"""The trainable values of all lanes: one tensor per name on the model's device.

Shapes: D lanes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from fibec_ray.tensors import Tensors


class LaneValues:
    """Stores tensors (D, ...) by name, and gives each lane its rows as parameters.

    On a GPU the host keeps a copy. `load` and `read` use the copy, and the tensors move as a whole when one side needs
    what the other has changed. Loading a round's values is then one transfer per name, whatever the number of lanes.

    like: the model's parameters, with the initial values. copied: keep a copy on the host; None: on a GPU only.
    """

    def __init__(self, like: Mapping[str, nn.Parameter], size: int, copied: bool | None = None):
        self._stacks = {name: value.detach().expand(size, *value.shape).clone() for name, value in like.items()}
        on_gpu = any(value.device.type == "cuda" for value in self._stacks.values())
        self._host: Tensors | None = None
        if on_gpu if copied is None else copied:
            self._host = {n: torch.empty(v.shape, dtype=v.dtype, pin_memory=on_gpu) for n, v in self._stacks.items()}
        self._to_fetch = set(self._stacks)
        """names whose copy on the host is out of date"""
        self._to_send: set[str] = set()
        """names whose copy on the host has newer values"""
        # Through `.data`, each lane counts its own changes: autograd would take a change of another lane for one of its
        # own, and refuse a graph that is still needed.
        self._parameters = [{n: nn.Parameter(v.data[lane]) for n, v in self._stacks.items()} for lane in range(size)]

    @property
    def stacks(self) -> Tensors:
        """(D, ...) by name. Call `changed` after changing them."""
        self._send()
        return self._stacks

    def parameters(self, lane: int) -> Mapping[str, nn.Parameter]:
        """One lane's values, which share memory with `stacks`."""
        self._send()
        return self._parameters[lane]

    def changed(self) -> None:
        """Note that `stacks` have new values."""
        self._to_fetch = set(self._stacks)

    @torch.no_grad()
    def load(self, lane: int, values: Mapping[str, Tensor]) -> None:
        """Copy values into the tensors of one lane."""
        self._fetch(values.keys())
        for name, value in values.items():
            target = self._parameters[lane][name] if self._host is None else self._host[name][lane]
            target.copy_(value)
        if self._host is not None:
            self._to_send.update(values)

    def read(self, lane: int, names: Collection[str] | None = None) -> Tensors:
        """Copies of one lane's tensors on the host (all, or those named)."""
        chosen = [name for name in self._stacks if names is None or name in names]
        self._fetch(chosen)
        source = self._stacks if self._host is None else self._host
        return {name: source[name][lane].cpu().clone() for name in chosen}

    @torch.no_grad()
    def _fetch(self, names: Collection[str]) -> None:
        """Update the host's copies."""
        if self._host is None:
            return
        for name in self._to_fetch.intersection(names):
            self._host[name].copy_(self._stacks[name])
            self._to_fetch.remove(name)

    @torch.no_grad()
    def _send(self) -> None:
        """Update the tensors on the device."""
        if self._host is None or not self._to_send:
            return
        for name in sorted(self._to_send):  # each copy waits, because the host may change its own right afterwards
            self._stacks[name].copy_(self._host[name])
        self._to_send.clear()
