"""The sharing axis."""

from fibec_ray.parts.sharing.base import Sharing
from fibec_ray.parts.sharing.gal import GlobalLayers

SHARINGS: dict[str, type[Sharing]] = {"all": Sharing, "gal": GlobalLayers}
