"""The PEFT axis."""

from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.full import Full
from fibec_ray.parts.peft.ia3 import Ia3
from fibec_ray.parts.peft.loha import Loha
from fibec_ray.parts.peft.lokr import Lokr
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.vera import Vera

PEFTS: dict[str, type[Peft]] = {"lora": Lora, "ia3": Ia3, "loha": Loha, "lokr": Lokr, "vera": Vera, "full": Full}
