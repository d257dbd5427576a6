"""Shared by all rivals: the workload's arrays, the model, and one device's local training.

Written for speed, as a careful user would: batches are slices of one array in memory, the base is loaded once per
process, samples of one length need no attention mask, and the optimiser is torch's fused one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """The workload's arrays and settings."""

    tokens: Tensor
    """(N, S) int64"""
    labels: Tensor
    """(N,) int64"""
    rows: Any
    """(rounds, cohort, steps, batch) rows of tokens and labels that a device trains on in a round, in order"""
    initial: Values
    settings: dict[str, Any]

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return len(self.rows)

    @property
    def cohort_size(self) -> int:
        """Devices per round."""
        return int(self.rows.shape[1])

    @property
    def samples_per_device(self) -> int:
        """Samples of a device-round."""
        return int(self.rows.shape[2] * self.rows.shape[3])

    def data(self, round_: int, place: int) -> tuple[Tensor, Tensor]:
        """(n, S) tokens and (n,) labels of one device-round, in the order of training."""
        rows = torch.from_numpy(self.rows[round_, place].reshape(-1))
        return self.tokens[rows], self.labels[rows]

    @property
    def batch_size(self) -> int:
        """Samples of a batch."""
        return int(self.rows.shape[3])


class Classifier(nn.Module):
    """Frozen base with LoRA, mean pooling and a linear head. Trainable parameters are named as peft saves them."""

    def __init__(self, workload: Workload, dtype: str):
        super().__init__()
        settings = workload.settings
        base = AutoModel.from_pretrained(
            settings["base"][dtype], dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        lora = settings["lora"]
        config = LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], target_modules=lora["target_modules"])
        self.body: Any = get_peft_model(base, config)
        self.head = nn.Linear(base.config.hidden_size, settings["num_classes"])
        self.eval()  # no dropout

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, S) token ids -> (B, C) scores."""
        states = self.body.base_model(input_ids=tokens).last_hidden_state
        return self.head(states.float().mean(1))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name."""
        names = ((name.replace(".default.", ".").removeprefix("body."), p) for name, p in self.named_parameters())
        return {name: p for name, p in names if p.requires_grad}


@cache
def load_workload(folder: str) -> Workload:
    """Read the arrays; once per process."""
    path = Path(folder)
    return Workload(
        torch.from_numpy(np.load(path / "tokens.npy", allow_pickle=False)),
        torch.from_numpy(np.load(path / "labels.npy", allow_pickle=False)),
        np.load(path / "rows.npy", allow_pickle=False),
        load_file(path / "initial.safetensors"),
        json.loads((path / "settings.json").read_text()),
    )


@cache
def load_model(folder: str, dtype: str = "float32", device: str = "cpu") -> Classifier:
    """The model; one per process."""
    torch.set_num_threads(1)
    workload = load_workload(folder)
    model = Classifier(workload, dtype).to(device)
    load(model, workload.initial)
    return model


@torch.no_grad()
def load(model: Classifier, values: Values) -> None:
    """Copy values into the model's trainable parameters."""
    for name, parameter in model.trainable().items():
        parameter.copy_(values[name])


def read(model: Classifier) -> Values:
    """Detached copies of the trainable parameters."""
    return {name: p.detach().clone() for name, p in model.trainable().items()}


def flat(values: Values) -> Any:
    """All values as one array, which is faster to send than many."""
    return np.concatenate([values[name].cpu().numpy().ravel() for name in sorted(values)])


def unflat(array: Any, like: Values) -> Values:
    """The named tensors of an array that `flat` made."""
    names = sorted(like)
    pieces = torch.from_numpy(array.copy()).split([like[name].numel() for name in names])
    return {name: piece.view(like[name].shape) for name, piece in zip(names, pieces, strict=True)}


def train(model: Classifier, workload: Workload, round_: int, place: int) -> float:
    """One device-round, in place. Returns the last step's loss."""
    where = model.head.weight.device
    tokens, labels = (one.to(where) for one in workload.data(round_, place))
    parameters, settings = list(model.trainable().values()), workload.settings
    optimizer = adamw(parameters, settings["learning_rate"], settings["weight_decay"])
    loss = torch.zeros(())
    for batch, wanted in zip(tokens.split(workload.batch_size), labels.split(workload.batch_size), strict=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch), wanted)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, settings["clip"])
        optimizer.step()
    return float(loss.detach())


def adamw(parameters: Any, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """torch's fused AdamW."""
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True)


@dataclass(frozen=True)
class Arguments:
    """Arguments of a rival's command. arrays: folder of the workload. out: folder for the results. device: torch's."""

    arrays: str
    out: Path
    dtype: str
    device: str = "cpu"

    @staticmethod
    def of(argv: list[str]) -> Arguments:
        """Read the arguments of a command line."""
        return Arguments(argv[1], Path(argv[2]), *argv[3:5])


def report(arguments: Arguments, ends: list[float], adapter: Values, version: str) -> None:
    """Write the results. ends: when each round ended, seconds since the epoch. adapter: the final global adapter."""
    save_file({name: value.contiguous() for name, value in adapter.items()}, arguments.out / "adapter.safetensors")
    (arguments.out / "report.json").write_text(json.dumps({"ends": ends, "version": version}))
