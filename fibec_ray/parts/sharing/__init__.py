"""The sharing axis."""

from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.parts.sharing.body import Body
from fibec_ray.parts.sharing.gal import GlobalLayers
from fibec_ray.parts.sharing.matrices import Matrices
from fibec_ray.parts.sharing.nothing import Nothing

SHARINGS: dict[str, type[Sharing]] = {
    "all": Sharing,
    "gal": GlobalLayers,
    "matrices": Matrices,
    "body": Body,
    "none": Nothing,
}
