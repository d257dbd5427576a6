"""Which devices start to train. To add a sampler: one file, and one line here."""

from fibec_ray.samplers.base import Sampler
from fibec_ray.samplers.oort import Oort
from fibec_ray.samplers.poisson import Poisson
from fibec_ray.samplers.weighted import Weighted

SAMPLERS: dict[str, type[Sampler]] = {
    "uniform": Sampler,
    "poisson": Poisson,
    "weighted": Weighted,
    "oort": Oort,
}
"""The samplers by kind. The first is the default."""
