"""The state after a decoder's final norm would change the shared layers; the blocks' own outputs do not have it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fibec_ray.bench.last_block import score
from fibec_ray.errors import UserError

SMALL = ["backbone=tiny-llama", "data.synthetic.num_train=40", "data.synthetic.num_test=8", "data.max_length=32"]


@pytest.mark.slow
def test_after_the_final_norm_the_last_block_looks_insensitive(tmp_path: Path) -> None:
    """An RMSNorm of weight 1 gives all tokens the same norm but for its eps, so almost no change is left."""
    own, normed = score(SMALL, tmp_path, threads=1).values()
    assert torch.equal(own.scores[:-1], normed.scores[:-1]) and own.scores.argmax() == 3
    assert normed.scores[3] < 0.02 * normed.scores[0] < normed.scores[1] < own.scores[3]
    assert (own.shared, normed.shared) == ([2, 3], [1, 2])
    assert own.line("own").startswith("| own | 2, 3 |") and normed.line("after").endswith("| 4 of 4 |")


@pytest.mark.slow
def test_a_method_that_scores_no_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method.sharing: all scores no layers; choose a method such as fibecfed"):
        score([*SMALL, "method=fedavg"], tmp_path, threads=1)
