"""The model that devices train from scratch: a small network without backbone or adapter.

Shapes: B samples, C scores, p numbers of a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fibec_ray import seeds
from fibec_ray.answers import Answers
from fibec_ray.curvature.sample_formulas import collect_holders
from fibec_ray.model_types import Batch, BatchForm, Outputs, Work
from fibec_ray.models.alone import Alone
from fibec_ray.models.network import Network, Shape

T = TypeVar("T")


class NetSettings(Protocol):
    """What the model needs to know of a network."""

    @property
    def num_layers(self) -> int:
        """Number of weight layers before the output layer."""

    def network(self, shape: Shape, num_scores: int) -> Network:
        """Make the torch module."""

    def operator_network(self, shape: Shape) -> Network:
        """Make the torch module for the readout `operator`."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """All settings."""


class NetModel(Alone):
    """One network, used by one device at a time. Implements `LocalModel`.

    Its blocks are the weight layers before the output layer. The output layer is the head, outside blocks: always
    shared, except under sharing rules with personal heads, as on a pretrained backbone. Unlike there, the head counts
    as adapter, since all layers start at random and one curvature matrix may cover all weights.

    spec: the network. shape: of a sample. answers: what it gives for a sample. seed: of the initial values.
    """

    def __init__(self, spec: NetSettings, shape: Shape, answers: Answers, seed: int, device: str = "cpu"):
        self.device = torch.device(device)
        self.work = Work()
        with seeds.seeded_third_party(seed, "adapter"):
            is_operator = answers.readout == "operator"
            self.net = spec.operator_network(shape) if is_operator else spec.network(shape, answers.num_scores)
        self.forward_flops = _forward_flops(self.net, shape)
        self.net.to(self.device)
        self.num_layers = spec.num_layers
        self.adapter_config = {
            **spec.model_dump(mode="json"),
            "input_shape": list(shape),
            "num_scores": answers.num_scores,
        }
        self.shape = shape
        self._likelihood = answers.distribution()
        self.trainable = dict(self.net.named_parameters())
        self.holders = collect_holders(self.net, lambda name: name)

    @property
    def module(self) -> Network:
        """The whole network."""
        return self.net

    @property
    def head(self) -> None:
        """The output layer belongs to the network."""

    def layer_of(self, name: str) -> int | None:
        """The layer of a tensor: `layers.1.weight` -> 1, `output.weight` -> None."""
        first, _, rest = name.partition(".")
        return int(rest.partition(".")[0]) if first == "layers" else None

    def is_adapter(self, name: str) -> bool:
        return True

    def set_rank(self, rank: int | None) -> None:
        """Does nothing: all devices train the same network."""

    def train(self, mode: bool) -> None:
        self.net.train(mode)

    def embed(self, batch: Batch) -> Tensor:
        """(B, 1, p): the sample is its only token."""
        return self.net.embed(batch.inputs["features"].to(self.device)).unsqueeze(1)

    def forward(self, batch: Batch, embeds: Tensor | None = None, hidden: bool = False) -> Outputs:
        features = batch.inputs["features"].to(self.device)
        labels = batch.labels.to(self.device)
        flops = len(features) * self.forward_flops
        backward = 2 * flops if torch.is_grad_enabled() else 0.0  # gradients of inputs and of weights
        self.work.add(Work(flops + backward, len(features), backward))
        scores, found = self.net(features, None if embeds is None else embeds.squeeze(1))
        losses = self._likelihood.losses(scores, labels)
        return Outputs(losses, scores, tuple(h.unsqueeze(1) for h in found) if hidden else (), self._likelihood)


class NetOutline(NetModel):
    """A network from which a run is planned. Implements `SizedModel`; it is small enough to have values."""

    blocks_are_alike = False
    vocab_size = 0
    backward_share = 2.0
    answer_flops = 0.0

    def __init__(self, spec: NetSettings, form: BatchForm, answers: Answers, seed: int):
        super().__init__(spec, form.shape, answers, seed)
        self.batch = form.batch

    def frozen(self) -> dict[str, Tensor]:
        """Nothing is frozen."""
        return {}

    def within(self, work: Callable[[], T]) -> T:
        """Run the work."""
        return work()

    def pass_flops(self, num_samples: int, length: int) -> float:
        """Flops of one pass without gradients."""
        return num_samples * self.forward_flops

    def largest_product(self, max_length: int) -> tuple[int, int, int]:
        """A usual size: products are small, and take about as long as any."""
        return 1, 64, 64


@torch.no_grad()
def _forward_flops(net: Network, shape: Shape) -> float:
    """Flops of one sample, 2 per multiply-add: every weight once for each output position of its layer."""
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *shape))
    return float(counter.get_total_flops())
