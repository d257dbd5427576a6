"""GPU memory of this process, as the round log records it."""

from __future__ import annotations

import torch

from fibec_ray.models.backends import CONTEXT_BYTES


def peak_gpu_memory_bytes() -> int | None:
    """Largest GPU memory of this process so far, on the fullest of its GPUs; None if it has used none.

    The memory that torch's allocator reserved, which includes freed blocks that it keeps, plus CUDA's context. It is
    about what nvidia-smi shows for the process. torch does not know the size of a context, so the measured one of an
    H200 is added.
    """
    if not torch.cuda.is_initialized():
        return None
    reserved = max((torch.cuda.max_memory_reserved(number) for number in range(torch.cuda.device_count())), default=0)
    return reserved + CONTEXT_BYTES if reserved else None


def forget_peak() -> None:
    """Give memory that is not in use back to the GPU, and count the peak from now on. Used after a trial."""
    if not torch.cuda.is_initialized():
        return
    torch.cuda.empty_cache()
    for number in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(number)


def what_to_lower(error: torch.OutOfMemoryError) -> str:
    """One line that says that GPU memory ran out, and what helps."""
    first = str(error).partition("\n")[0].rstrip(". ")
    return (
        f"the GPU's memory ran out ({first}); start a new run with fewer fleet.lanes, a smaller local.batch_size, "
        "evaluation.batch_size or data.max_length, or with backbone.checkpointing=true (`fibec-ray plan` shows what a "
        "run needs)"
    )
