"""`python -m tests.system.gate --pairs 20000 --seed 1`: prints what was missed, false alarms, and figures."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime

from tests.system.gate.campaign import Figures, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.system.gate", description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="number of the first pair")
    parser.add_argument("--mails", type=int, default=600, help="mails tried for each pair that passes")
    parser.add_argument("--alarms", type=int, default=3, help="false alarms told each time")
    arguments = parser.parse_args()
    figures = Figures()
    for start in range(0, arguments.pairs, 200):
        numbers = range(arguments.seed + start, arguments.seed + min(start + 200, arguments.pairs))
        run(numbers, figures, mails=arguments.mails, today=datetime.now(UTC).date())
        told = (figures, "", *figures.missed, *figures.disagreed[:3], "", *figures.alarms[-arguments.alarms :], "")
        print(*told, sep="\n", flush=True)  # noqa: T201
    sys.exit(bool(figures.missed))
