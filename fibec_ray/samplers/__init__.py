"""Which devices start to train. To add a sampler: one file, and one line here."""

from fibec_ray.samplers.base import Sampler

SAMPLERS: dict[str, type[Sampler]] = {
    "uniform": Sampler,
}
"""The samplers by kind. The first is the default."""
