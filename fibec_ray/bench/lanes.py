"""Times lanes on one device, CPU or GPU: steps per second, use of the hardware and memory, by number of lanes.

    python -m fibec_ray.bench.lanes --device cuda            RoBERTa-large, 8 x 128 tokens, 1, 8 and 32 lanes
    python -m fibec_ray.bench.lanes --hidden 64 --layers 2 --vocabulary 100 --batch 2 --tokens 8      a small trial

The model's weights are random, in bfloat16; LoRA r = 8 on query and value, computed in bfloat16 with float32 values,
and a linear head over the mean of the last states. A step is the engine's: loss, gradients, clipping and AdamW, with
the same code (models/lane_bank.py, learning/optimiser_step.py). No data are read, and nothing is aggregated.
"""

from __future__ import annotations

import argparse
import resource
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.curvature.sample_formulas import collect_holders
from fibec_ray.learning.job import LocalTraining
from fibec_ray.learning.lane_values import LaneValues
from fibec_ray.learning.optimiser_step import OptimiserStep
from fibec_ray.models.lane_bank import LaneBank

PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165}
"""Dense bfloat16 TFLOP/s from the data sheets, by a part of the device's name."""
CLASSES = 6
WARM_UP = 3
"""Steps before a CUDA graph is captured."""
STEPS_PER_ROUND = 4
"""A device-round of 32 samples in batches of 8."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a trial: the encoder's width, depth and vocabulary; samples and tokens of a lane's step."""

    hidden: int
    layers: int
    vocabulary: int
    batch: int
    tokens: int

    @property
    def flops(self) -> float:
        """Operations of one lane's step: products with frozen weights and attention, forward and backward."""
        dense = 2.0 * 12 * self.hidden**2 * self.layers
        return 2 * self.batch * self.tokens * (dense + 4.0 * self.layers * self.hidden * self.tokens)


class Trial:
    """An encoder with LoRA, and lanes that train it: one tensor per name for all lanes, as in the engine.

    The adapter computes in the base's dtype, and its values are float32.
    """

    def __init__(self, shape: Shape, device: str, lanes: int):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel, RobertaConfig

        torch.manual_seed(0)
        config = RobertaConfig(
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=max(1, shape.hidden // 64),
            intermediate_size=4 * shape.hidden,
            vocab_size=shape.vocabulary,
            max_position_embeddings=shape.tokens + 2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        base = AutoModel.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa", trust_remote_code=False
        ).requires_grad_(False)
        wanted = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
        self.model: Any = get_peft_model(base, wanted).to(device)
        for layer in self.model.modules():
            if hasattr(layer, "cast_input_dtype_enabled"):
                layer.cast_input_dtype_enabled = False  # states stay in bfloat16
        self.head = nn.Linear(shape.hidden, CLASSES).to(device)
        holders = {**collect_holders(self.model, lambda name: name), "head": self.head}
        params = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        params |= {f"head.{n}": p for n, p in self.head.named_parameters()}
        # A holder's tensors are known by the names of its parameters.
        self.bank = LaneBank(holders, params)
        self.shape, self.device, self.lanes = shape, device, lanes
        stacks = LaneValues(params, lanes).stacks
        self.values = {name: nn.Parameter(value) for name, value in stacks.items()}
        self.optimiser = OptimiserStep(self.values, LocalTraining(), 1e-3, {}, None, stacked=True)
        self.ids = torch.randint(3, shape.vocabulary, (lanes * shape.batch, shape.tokens), device=device)
        self.labels = torch.randint(0, CLASSES, (lanes * shape.batch,), device=device)

    def losses(self) -> Tensor:
        """(lanes,) mean losses, in one graph."""
        with self.bank.using_stack(self.values):
            states = self.model.get_base_model()(input_ids=self.ids).last_hidden_state
            scores = self.head(states.float().mean(1))
        return F.cross_entropy(scores, self.labels, reduction="none").view(self.lanes, -1).mean(1)

    def step(self) -> Tensor:
        """One training step of all lanes. Returns the lanes' losses."""
        losses = self.losses()
        wanted = list(self.values.values())
        for param, grad in zip(wanted, torch.autograd.grad(losses.sum(), wanted), strict=True):
            param.grad = grad.contiguous()
        self.optimiser.step()
        return losses.detach()

    def captured(self) -> Callable[[], object]:
        """A function that repeats the step as a CUDA graph: one launch for all of its kernels. Takes a few steps."""
        for group in self.optimiser.optimizer.param_groups:
            group["capturable"] = True
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self.step()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with _without_masks(), torch.cuda.graph(graph):
            self.step()
        return graph.replay

    def seconds(self, steps: int, graph: bool = False) -> float:
        """Median seconds of a step, after two warm-up steps. graph: as a CUDA graph."""
        take = self.captured() if graph else self.step

        def step() -> None:
            take()
            if self.device.startswith("cuda"):
                torch.cuda.synchronize()

        return median(timeit.repeat(step, number=1, repeat=steps + 2)[2:])


@contextmanager
def _without_masks() -> Iterator[None]:
    """Nothing is padded, but transformers builds a full mask while a graph is captured, which slows attention down."""
    from transformers import masking_utils

    own = masking_utils._ignore_bidirectional_mask_sdpa
    masking_utils._ignore_bidirectional_mask_sdpa = lambda *args, **options: True
    try:
        yield
    finally:
        masking_utils._ignore_bidirectional_mask_sdpa = own


def peak_memory(device: str) -> float:
    """Peak memory in GB: of the GPU's allocator, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def peak_tflops(device: str, given: float | None) -> float | None:
    """The hardware's peak TFLOP/s in bfloat16; None if unknown."""
    if given or not device.startswith("cuda"):
        return given
    name = torch.cuda.get_device_name()
    return next((float(peak) for part, peak in PEAK_TFLOPS.items() if part in name), None)


def row(
    shape: Shape, device: str, lanes: int, steps: int, peak: float | None, graph: bool = False
) -> tuple[str, float]:
    """One line of the table, and its device-rounds per second. graph: steps are CUDA graphs."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = Trial(shape, device, lanes).seconds(steps, graph)
    rate, tflops = lanes / (STEPS_PER_ROUND * seconds), lanes * shape.flops / seconds / 1e12
    share = f"{100 * tflops / peak:.1f} %" if peak else "–"
    memory = peak_memory(device)
    text = (
        f"| {lanes} | {1e3 * seconds:.1f} | {rate:.2f} | {tflops:.2f} | {share} | {memory:.2f} | {memory / lanes:.3f} |"
    )
    return text, rate


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m fibec_ray.bench.lanes", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8, 32])
    for name, value in (("hidden", 1024), ("layers", 24), ("vocabulary", 50265), ("batch", 8), ("tokens", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--graph", action="store_true", help="repeat each step as a CUDA graph")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument(
        "--peak-tflops", type=float, help="peak of the hardware in bfloat16, if the device is not in the table"
    )
    a = parser.parse_args(argv)
    torch.set_num_threads(a.threads)
    shape, peak = Shape(a.hidden, a.layers, a.vocabulary, a.batch, a.tokens), peak_tflops(a.device, a.peak_tflops)
    print(
        f"{torch.cuda.get_device_name() if a.device.startswith('cuda') else 'CPU'}, torch {torch.__version__}, {shape}"
    )
    print("| lanes | ms per step | device-rounds/s | TFLOP/s | of the peak | peak memory, GB | GB per device |")
    print("|---|---|---|---|---|---|---|")
    first = None
    for lanes in a.lanes:
        text, rate = row(shape, a.device, lanes, a.steps, peak, a.graph)
        first = first or rate
        print(f"{text} {rate / first:.2f}x the first", flush=True)


if __name__ == "__main__":
    main()
