"""The sharing axis: which trainable tensors devices communicate."""

from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.parts.sharing.fixed import Body, Matrices, Nothing
from fibec_ray.parts.sharing.gal import GlobalLayers

SHARINGS: dict[str, type[Sharing]] = {
    "all": Sharing,
    "gal": GlobalLayers,
    "matrices": Matrices,
    "body": Body,
    "none": Nothing,
}
