"""The PEFT axis: which small tensors are trained in or around the frozen base."""

from fibec_ray.parts.peft.adalora import AdaLora
from fibec_ray.parts.peft.adapter import Adapter
from fibec_ray.parts.peft.attempt import Attempt
from fibec_ray.parts.peft.base import Peft
from fibec_ray.parts.peft.bitfit import BitFit
from fibec_ray.parts.peft.delta_lora import DeltaLora
from fibec_ray.parts.peft.full import Full
from fibec_ray.parts.peft.generated import Idpg
from fibec_ray.parts.peft.library import Ia3, Loha, Lokr, Vera
from fibec_ray.parts.peft.lora import Lora
from fibec_ray.parts.peft.lora_sb import LoraSb
from fibec_ray.parts.peft.lpt import Lpt
from fibec_ray.parts.peft.moving_lora import MovingLora
from fibec_ray.parts.peft.prefix import Prefix
from fibec_ray.parts.peft.ravan import Ravan
from fibec_ray.parts.peft.seeded_lora import SeededLora
from fibec_ray.parts.peft.sparse_lora import SparseLora
from fibec_ray.parts.peft.virtual import Prompt, PTuning

PEFTS: dict[str, type[Peft]] = {
    "lora": Lora,
    "moving_lora": MovingLora,
    "sparse_lora": SparseLora,
    "lora_sb": LoraSb,
    "ravan": Ravan,
    "seeded_lora": SeededLora,
    "adalora": AdaLora,
    "ia3": Ia3,
    "loha": Loha,
    "lokr": Lokr,
    "vera": Vera,
    "prompt": Prompt,
    "p_tuning": PTuning,
    "prefix": Prefix,
    "bitfit": BitFit,
    "adapter": Adapter,
    "delta_lora": DeltaLora,
    "idpg": Idpg,
    "lpt": Lpt,
    "attempt": Attempt,
    "full": Full,
}
