"""Numbers of named device classes: phone, edge and silo.

Sources, and what is our own choice:

- Mobile links, 11 Mbit/s up and 36 down; fixed links, 46 up and 86 down: world means of the Speedtest Global Index
  (Ookla) of September 2020. A silo's 1 Gbit/s is our choice.
- An edge device's compute: Jetson AGX Orin, 5.3 Tflop/s in fp32 at 60 W (NVIDIA's data sheet). A silo's: A100 SXM, 312
  Tflop/s in bf16 at 400 W (NVIDIA's data sheet). Ours: training reaches 40 % of the peak at full power.
- A phone's compute, 100 Gflop/s at 5 W, is our choice.
- Energy of links: P = a * rate + b, fitted on phones by Huang et al. (MobiSys 2012, "A Close Examination of Performance
  and Power Characteristics of 4G LTE Networks"). LTE: a = 438.39 mW per Mbit/s up and 51.97 down, b = 1288 mW; Wi-Fi:
  283.17, 137.01 and 133 mW. J/MB = 8 (a + b / rate) / 1000. We take LTE for phones and Wi-Fi for edge devices; the
  fit was made at lower rates. A silo's 0.1 J/MB is our choice.
"""

from __future__ import annotations

from typing import NamedTuple


class Numbers(NamedTuple):
    """Speeds and energy of a device."""

    gflops: float
    """sustained speed, 1e9 flop/s"""
    up_mbps: float
    """uplink, 1e6 bit/s"""
    down_mbps: float
    """downlink, 1e6 bit/s"""
    gflops_per_joule: float
    """1e9 floating point operations per joule"""
    up_j_per_mb: float
    """joules to send 1e6 bytes"""
    down_j_per_mb: float
    """joules to receive 1e6 bytes"""


PHONE = Numbers(100, 11, 36, 20, 4.4, 0.7)
EDGE = Numbers(2_100, 46, 86, 35, 2.3, 1.1)
SILO = Numbers(125_000, 1_000, 1_000, 310, 0.1, 0.1)

CLASSES = {"phone": PHONE, "edge": EDGE, "silo": SILO}
