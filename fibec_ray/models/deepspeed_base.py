"""The frozen base under DeepSpeed's ZeRO-3, offloaded to host memory. The only module that imports DeepSpeed.

DeepSpeed partitions and fetches only the base. Adapters are attached afterwards, are not parameters of its engine, and
are trained by the usual code.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

from fibec_ray.errors import ModelError
from fibec_ray.models.base_weights import BaseWeights

PREFETCH = 2 * 10**8
"""Number of parameters to fetch ahead; up to 2.5 times as many are kept."""


class Partitioned(BaseWeights):
    """A base under ZeRO-3. load: opens the base; called here, so that no process ever holds a second copy."""

    def __init__(self, load: Callable[[], Any], dtype: str, device: torch.device):
        deepspeed = _library(device)
        config = _config(dtype)
        from transformers.integrations import HfDeepSpeedConfig

        meanwhile = HfDeepSpeedConfig(config)  # while this object exists, from_pretrained partitions what it reads
        base = load()
        del meanwhile
        self._engine, *_ = deepspeed.initialize(model=base, config=config)
        self._counts: list[tuple[Any, int, int]] = []
        super().__init__(self._engine.module, lambda module: None)

    def after_forward(self) -> None:
        """Record how often each module is needed again: DeepSpeed's hooks count for only one backward pass."""
        self._counts = [
            (module, module.applied_pre_backward_ref_cnt, module.__dict__.get("ds_grads_remaining", 0))
            for module in self.base.modules()
            if "applied_pre_backward_ref_cnt" in module.__dict__
        ]

    def before_backward(self) -> None:
        for module, needed, grads in self._counts:
            module.applied_pre_backward_ref_cnt, module.ds_grads_remaining = needed, grads


def _config(dtype: str) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # required, but not used here
        "steps_per_print": 10**9,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {
            "stage": 3,
            "memory_efficient_linear": False,  # it would replace torch's own product globally
            # Pinned memory cannot be swapped out, and a base fills most of a small node's memory.
            "offload_param": {"device": "cpu", "pin_memory": False},
            "stage3_param_persistence_threshold": 10**5,
            "stage3_prefetch_bucket_size": PREFETCH,
            "stage3_max_live_parameters": PREFETCH * 5 // 2,
            "stage3_max_reuse_distance": PREFETCH * 5 // 2,
        },
    }


def _library(device: torch.device) -> Any:
    """Import DeepSpeed and start a process group of one. Raises ModelError if it is not installed."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # Without these DeepSpeed looks for MPI. With its own store the group opens no port.
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(one, MASTER_PORT=str(os.getpid()))
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
    except ImportError as error:
        raise ModelError(
            "backbone.backend: deepspeed is not installed; run `pip install 'fibec_ray[deepspeed]'`, or set it to "
            "stream"
        ) from error
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it leaks a file in shared memory per process
    if not distributed.is_initialized():
        kind = "gloo" if device.type == "cpu" else "nccl"
        store: Any = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group(kind, store=store, rank=0, world_size=1)
    return deepspeed
