"""The PEFT axis."""

from fibec_ray.parts.peft.base import Peft

PEFTS: dict[str, type[Peft]] = {"lora": Peft}
