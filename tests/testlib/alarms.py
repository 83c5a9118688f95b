"""Alarms of a site: the settings, the fault that most tests take, and which stand by alarms.json.
Standard: deploy/METRICS.md, the alarms.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.testlib.sites import Site


def with_alarms(site: Site, text: str) -> Site:
    site.config_file.write_text(f"{site.config_file.read_text()}\n[alarms]\n{text}\n")
    return site


def break_policies(site: Site) -> None:
    (site.directory / "policies" / "default.toml").write_text("levels = nothing\n")


def standing(site: Site) -> list[dict[str, Any]]:
    try:
        return list(json.loads(site.config.alarms_file.read_text())["alarms"])
    except FileNotFoundError:
        return []


async def until_written(site: Site, *alarms: str) -> None:
    found: list[str] = []
    try:
        async with asyncio.timeout(30):
            while (found := sorted(each["alarm"] for each in standing(site))) != sorted(alarms):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{found} stand, and not {sorted(alarms)}") from None
