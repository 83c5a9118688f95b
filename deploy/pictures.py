"""Makes the pictures of README.md from the running demonstration: its output, and the status page of Alice's relay.
Standard: `python deploy/pictures.py` writes deploy/demo.svg and deploy/status.png; needs Debian's package `chromium`.
"""

from __future__ import annotations

import asyncio
import io
import re
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import demo
from rich.console import Console

from relay.config import TCPAddress

DEPLOY = Path(__file__).parent
STATUS = """
[status]
listen = "127.0.0.1:1508{sae}"
"""
PAGE_OF_ALICE = "http://127.0.0.1:15082/"
MAILS = 60
"""Number of further mails, so that the page's charts show something."""
SETTLE_S = 65
"""Seconds from the last mail to the picture: the page's history gets a figure each minute."""


async def take_page(alice: TCPAddress, profile: Path) -> None:
    """Sends mail at all levels, then writes status.png."""
    for number in range(MAILS):
        level = list(demo.LEVELS)[number % len(demo.LEVELS)]
        await demo.send(alice, "alice@alice.example", [f"{level}@bob.example"], demo.a_real_message())
    await asyncio.sleep(SETTLE_S)
    browser = await asyncio.create_subprocess_exec(
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        "--window-size=1000,740",
        "--timeout=5000",
        f"--screenshot={DEPLOY / 'status.png'}",
        PAGE_OF_ALICE,
    )
    if await browser.wait():
        raise demo.DemoError("chromium took no picture")


def as_svg(console: Console) -> str:
    """What the console has shown; without the font that Rich would load from elsewhere."""
    svg = console.export_svg(title="deploy/demo --once", unique_id="demo")
    return re.sub(r"@font-face \{.*?\n    \}\n", "", svg, flags=re.DOTALL)


async def take(console: Console, alice: TCPAddress, work: Path) -> None:
    """Both pictures, at the end of the demonstration."""
    console.print(demo.OK)
    (DEPLOY / "demo.svg").write_text(as_svg(console))
    await take_page(alice, work / "browser")


def main() -> None:
    """Runs the demonstration with a status page at both relays, shortened to the size of a picture."""
    console = Console(record=True, width=120, file=io.StringIO(), force_terminal=True, highlight=False)
    shortened: dict[str, Any] = {"SHOWN_LINES": 20, "SHOWN_COLUMNS": 33, "begins": lambda *_: None}
    with (
        tempfile.TemporaryDirectory(prefix="qumail-relay-pictures-") as work,
        mock.patch.multiple(demo, RELAY_TOML=demo.RELAY_TOML + STATUS, until_stopped=take, **shortened),
    ):
        asyncio.run(demo.journey(console, Path(work), True, []))


if __name__ == "__main__":
    main()
