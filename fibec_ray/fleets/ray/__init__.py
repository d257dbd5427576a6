"""The Ray fleet: one actor per device or pool of devices, a server actor, and recovery from lost actors and nodes."""

import ray

from fibec_ray.garbage import collect_in_large_steps

if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
    collect_in_large_steps()  # before an actor's module imports torch
