"""How fast policies are read, read again after an edit, and asked, beside a dictionary look-up in the same run.
Aims for 100,000 files, all different: load under 10 s, reload under 50 ms, decision under 20 microseconds (median).
"""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from relay.policy.decide import PolicySet
from relay.policy.load import PolicyFolder
from tests.bench.result import BenchResult, Progress, machine

FULL_FILES = 100_000
QUICK_FILES = 2_000
RELOADS = 15
DECISIONS = 20_000
PERSONS_PER_DOMAIN = 9

_RULES = '[[when]]\nsender = "*@board{n}.alice.example"\nlevels = ["otp"]\n'
_LEVELS = ('["aes"]', '["otp", "aes"]', '["pqc", "rsa"]', "[1, 2, 3]")


def measure_policy(*, files: int, progress: Progress = lambda *_: None) -> BenchResult:
    """Writes a number of policy files into a temporary directory and measures; most figures are medians.

    A decision is for one recipient, a look-up one in a dictionary with as many entries as there are files.
    """
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        progress("writing files", 0.0)
        recipients = _write(directory, files, chance)
        folder = PolicyFolder(directory, {"bob": ["bob.example"]})
        progress("loading", 0.4)
        began = time.perf_counter()
        policies = folder.read()
        load_s = time.perf_counter() - began
        progress("reloading", 0.8)
        reloads = [_reload(directory, folder, number) for number in range(RELOADS)]
        progress("deciding", 0.9)
        decisions, lookups = _decide(policies, chance.choices(recipients, k=DECISIONS))
    figures = {
        "files": len(policies.files),
        "load_s": load_s,
        "reload_ms": statistics.median(reloads) * 1e3,
        "reload_worst_ms": max(reloads) * 1e3,
        "decision_us": statistics.median(decisions) * 1e6,
        "decision_p99_us": statistics.quantiles(decisions, n=100)[-1] * 1e6,
        "lookup_us": statistics.median(lookups) * 1e6,
    }
    aims = (
        ("load", figures["load_s"], 10.0, "s"),
        ("reload of one edited file", figures["reload_ms"], 50.0, "ms"),
        ("decision, median", figures["decision_us"], 20.0, "us"),
        ("decision, p99", figures["decision_p99_us"], None, "us"),
        ("dictionary look-up", figures["lookup_us"], None, "us"),
    )
    where = machine()
    return BenchResult(
        columns=("what", "measured", "aim"),
        rows=[(title, f"{took:.2f} {unit}", f"{most:.0f} {unit}" if most else "") for title, took, most, unit in aims],
        names=3,
        missed=[number for number, (_, took, most, _) in enumerate(aims) if most and took > most],
        notes=f"{files:,} policy files\n{where}",
        data={**figures, "machine": asdict(where)},
    )


def _write(directory: Path, files: int, chance: random.Random) -> list[str]:
    """The files, one in ten with a rule; gives recipients of all kinds."""
    (directory / "default.toml").write_text('levels = ["aes"]\n')
    recipients = ["somebody@elsewhere.example"]
    written, domain = 1, 0
    while written < files:
        name = f"d{domain}.example"
        domain += 1
        (directory / f"{name}.toml").write_text(_text(written, chance))
        written += 1
        persons = min(PERSONS_PER_DOMAIN, files - written)
        if persons:
            (directory / name).mkdir()
        for person in range(persons):
            (directory / name / f"p{person}.toml").write_text(_text(written, chance))
            written += 1
        recipients += [f"Info@D{domain}.Example", f"p1@{name}", f"p1+tag@{name}", f"x@lab.{name}"]
    return recipients


def _text(number: int, chance: random.Random) -> str:
    rules = _RULES.format(n=number) if chance.random() < 0.1 else ""
    return f'# Number {number}.\npeer = "bob"\nlevels = {chance.choice(_LEVELS)}\notherwise = "hold"\n{rules}'


def _reload(directory: Path, folder: PolicyFolder, number: int) -> float:
    name = f"d{number}.example.toml"
    (directory / name).write_text(f'levels = ["pqc+aes", "pqc"]\n# edit {number}\n')
    began = time.perf_counter()
    folder.read_again([name])
    return time.perf_counter() - began


def _decide(policies: PolicySet, recipients: list[str]) -> tuple[list[float], list[float]]:
    """Seconds for each decision, and for each look-up of a string of the same kind in a plain dictionary."""
    plain = dict.fromkeys(policies.files)
    names = list(plain)
    clock = time.perf_counter
    decisions: list[float] = []
    lookups: list[float] = []
    gc.collect()
    for number, recipient in enumerate(recipients):
        began = clock()
        policies.decide("ann@alice.example", recipient)
        between = clock()
        plain.get(names[number % len(names)])
        ended = clock()
        decisions.append(between - began)
        lookups.append(ended - between)
    return decisions, lookups
