"""The distributions that a model's scores are parameters of; a loss is a negative log likelihood.

Curvature needs two things of a distribution p(y | s) with scores s: the gradients of log p for all labels y or for a
drawn one (Fisher information), and a factor L with L L^T = S, the curvature of -log p in the scores (Gauss-Newton
matrix).
"""

from __future__ import annotations

from collections.abc import Mapping

from fibec_ray.likelihoods.base import TOO_MANY_LABELS, Cotangents, Label, Likelihood
from fibec_ray.likelihoods.of_samples import Bernoulli, Categorical, Normal, Preferences, softmax_factor
from fibec_ray.likelihoods.tokens import NO_TAG, TOKEN_DRAWS, Tags, Tokens

__all__ = [
    "LIKELIHOODS", "NO_TAG", "TOKEN_DRAWS", "TOO_MANY_LABELS", "Bernoulli", "Categorical", "Cotangents", "Label",
    "Likelihood", "Normal", "Preferences", "Tags", "Tokens", "softmax_factor",
]  # fmt: skip

LIKELIHOODS: Mapping[str, type[Likelihood]] = {
    likelihood.name: likelihood for likelihood in (Categorical, Normal, Bernoulli, Tokens, Tags)
}
"""The likelihoods by name."""
