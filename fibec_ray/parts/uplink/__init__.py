"""The uplink axis: how updates are encoded on their way to the server."""

from fibec_ray.parts.uplink.base import Uplink
from fibec_ray.parts.uplink.flasc import Flasc
from fibec_ray.parts.uplink.half import Bf16, Fp16
from fibec_ray.parts.uplink.int8 import Int8
from fibec_ray.parts.uplink.nf4 import Nf4
from fibec_ray.parts.uplink.sign import Sign
from fibec_ray.parts.uplink.topk import TopK

UPLINKS: dict[str, type[Uplink]] = {
    "none": Uplink,
    "bf16": Bf16,
    "fp16": Fp16,
    "int8": Int8,
    "nf4": Nf4,
    "sign": Sign,
    "topk": TopK,
    "flasc": Flasc,
}
