"""The run directory: claimed by one driver at a time, its files written whole or not at all."""

from fibec_ray.files.run_dir.claim import Claim, alone, claimed, create, locked, next_free, refuse_driver, taken
from fibec_ray.files.run_dir.leftovers import half_made
from fibec_ray.files.run_dir.paths import absolute, failing_plainly, refused
from fibec_ray.files.run_dir.whole import flush, flush_folder, replace_folder, whole, write_json, write_text, write_yaml

__all__ = [
    "Claim",
    "absolute",
    "alone",
    "claimed",
    "create",
    "failing_plainly",
    "flush",
    "flush_folder",
    "half_made",
    "locked",
    "next_free",
    "refuse_driver",
    "refused",
    "replace_folder",
    "taken",
    "whole",
    "write_json",
    "write_text",
    "write_yaml",
]
