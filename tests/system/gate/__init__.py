"""`policy diff --strict` against an independent reference, on generated pairs of sets: `python -m tests.system.gate`."""
