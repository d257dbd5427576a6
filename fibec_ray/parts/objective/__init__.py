"""The objective axis: what a device minimises beside the task's loss."""

from fibec_ray.parts.objective.adalora import AdaLoraImportance
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.objective.feddyn import DynamicRegulariser
from fibec_ray.parts.objective.moon import Moon
from fibec_ray.parts.objective.proximal import Proximal
from fibec_ray.parts.objective.rank_pruning import RankPruning
from fibec_ray.parts.objective.scaffold import Scaffold
from fibec_ray.parts.objective.self_evolution import SelfEvolution

OBJECTIVES: dict[str, type[Objective]] = {
    "plain": Objective,
    "proximal": Proximal,
    "scaffold": Scaffold,
    "feddyn": DynamicRegulariser,
    "adalora": AdaLoraImportance,
    "rank_pruning": RankPruning,
    "moon": Moon,
    "self_evolution": SelfEvolution,
}
