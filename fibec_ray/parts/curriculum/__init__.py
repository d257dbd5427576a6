"""The curriculum axis: which batches a device trains on in a round."""

from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.curriculum.controls import RandomOrder, StepMatched
from fibec_ray.parts.curriculum.equal_work import EqualWork
from fibec_ray.parts.curriculum.lengths import LengthWarmup, ShortFirst
from fibec_ray.parts.curriculum.scored import FisherOrder, LengthOrder, LossOrder, RarityOrder

CURRICULA: dict[str, type[Curriculum]] = {
    "all": Curriculum,
    "fisher": FisherOrder,
    "random": RandomOrder,
    "step_matched": StepMatched,
    "equal_work": EqualWork,
    "loss": LossOrder,
    "length_order": LengthOrder,
    "rarity": RarityOrder,
    "length_warmup": LengthWarmup,
    "short_first": ShortFirst,
}
