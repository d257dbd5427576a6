"""The mask axis: which personal entries a device trains."""

from fibec_ray.parts.mask.base import Mask
from fibec_ray.parts.mask.by_neuron import RandomNeurons
from fibec_ray.parts.mask.fisher_neurons import FisherNeurons
from fibec_ray.parts.mask.frozen_matrix import FrozenMatrix
from fibec_ray.parts.mask.product_rows import ProductRows

MASKS: dict[str, type[Mask]] = {
    "none": Mask,
    "fisher_neurons": FisherNeurons,
    "random_neurons": RandomNeurons,
    "product_rows": ProductRows,
    "frozen_matrix": FrozenMatrix,
}
