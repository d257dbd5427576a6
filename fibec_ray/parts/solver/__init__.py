"""The solver axis: how a device trains, and which model it calls its own."""

from fibec_ray.parts.solver.base import Solver
from fibec_ray.parts.solver.feddpa import FedDpa
from fibec_ray.parts.solver.fedkseed import FedKSeed
from fibec_ray.parts.solver.fedrep import FedRep
from fibec_ray.parts.solver.fine_tune import FineTune
from fibec_ray.parts.solver.idle import Idle
from fibec_ray.parts.solver.own_model import Ditto, PFedMe
from fibec_ray.parts.solver.plgu import LayerPerturbation

SOLVERS: dict[str, type[Solver]] = {
    "single": Solver,
    "ditto": Ditto,
    "pfedme": PFedMe,
    "feddpa": FedDpa,
    "fedrep": FedRep,
    "plgu": LayerPerturbation,
    "fedkseed": FedKSeed,
    "fine_tune": FineTune,
    "idle": Idle,
}
