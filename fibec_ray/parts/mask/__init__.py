"""The mask axis."""

from fibec_ray.parts.mask.base import Mask
from fibec_ray.parts.mask.fisher_neurons import FisherNeurons

MASKS: dict[str, type[Mask]] = {"none": Mask, "fisher_neurons": FisherNeurons}
