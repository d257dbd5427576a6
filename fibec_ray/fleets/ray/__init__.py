"""The Ray fleet: one actor per device or pool of devices, a server actor, and recovery from lost actors and nodes."""

import sys
from typing import Any

from fibec_ray.garbage import collect_in_large_steps

# Not imported here: the driver starts a cluster before it imports Ray itself (local_cluster.py).
ray: Any = sys.modules.get("ray")
if ray and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
    collect_in_large_steps()  # before an actor's module imports torch
