"""Crashes and damages, from one process that has imported everything.

python -m runs.harness FOLDER WHAT:SAMPLE ...: WHAT is crashes or damage, FOLDER/WHAT/run.yaml the experiment, SAMPLE
'all' or 'NUMBER:SEED'. Prints {"crashes": {"cases": N, "failures": [...]}, ...} as JSON; what is found comes to the
error stream at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from runs import crashes, damage
from runs.forks import warm_up

WALKS = {"crashes": crashes.walk, "damage": damage.walk}


def main(folder: str, *wanted: str) -> None:
    found = {}
    for text in wanted:
        what, _, sample = text.partition(":")
        home = Path(folder).resolve() / what
        warm_up(home / "run.yaml")
        walk = WALKS[what](home, sample)
        failures = []
        for case in walk.cases:
            if fault := walk.fault(case):
                failures.append(f"{case}: {fault}")
                print(failures[-1], file=sys.stderr, flush=True)
        found[what] = {"cases": len(walk.cases), "failures": failures}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
