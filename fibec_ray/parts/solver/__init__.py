"""The solver axis."""

from fibec_ray.parts.solver.base import Solver
from fibec_ray.parts.solver.ditto import Ditto

SOLVERS: dict[str, type[Solver]] = {
    "once": Solver,
    "ditto": Ditto,
}
