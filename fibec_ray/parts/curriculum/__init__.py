"""The curriculum axis."""

from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.curriculum.fisher_order import FisherOrder
from fibec_ray.parts.curriculum.length_warmup import LengthWarmup
from fibec_ray.parts.curriculum.loss_order import LossOrder
from fibec_ray.parts.curriculum.random_order import RandomOrder
from fibec_ray.parts.curriculum.rarity_order import RarityOrder
from fibec_ray.parts.curriculum.short_first import ShortFirst
from fibec_ray.parts.curriculum.step_matched import StepMatched

CURRICULA: dict[str, type[Curriculum]] = {
    "all": Curriculum,
    "fisher": FisherOrder,
    "random": RandomOrder,
    "step_matched": StepMatched,
    "loss": LossOrder,
    "rarity": RarityOrder,
    "length_warmup": LengthWarmup,
    "short_first": ShortFirst,
}
