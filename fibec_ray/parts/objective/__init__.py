"""The objective axis."""

from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.objective.proximal import Proximal

OBJECTIVES: dict[str, type[Objective]] = {"plain": Objective, "proximal": Proximal}
