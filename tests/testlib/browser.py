"""A real browser without a window, led by its driver: Debian's Chromium and chromedriver.
Standard: W3C WebDriver; what only Chromium can do goes by its DevTools protocol (goog/cdp/execute).
"""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiohttp

TAB = "\ue004"
ENTER = "\ue007"


def missing() -> str:
    """Why there is no browser, "" where there is one."""
    gone = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{', '.join(gone)} not installed (deploy/test does it)" if gone else ""


class Browser:
    """One tab."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def command(self, path: str, **body: Any) -> Any:
        """What the driver answers to this POST."""
        async with self._session.post(f"{self._url}/{path}", json=body) as response:
            answer = (await response.json())["value"]
            assert response.status == 200, answer
            return answer

    async def get(self, what: str) -> Any:
        """What it has."""
        async with self._session.get(f"{self._url}/{what}") as response:
            return (await response.json())["value"]

    async def open(self, url: str) -> None:
        """Loads it."""
        await self.command("url", url=url)

    async def run(self, script: str, *args: Any) -> Any:
        """What the script returns, a promise's value."""
        wrapped = (
            "const done = arguments[arguments.length - 1]; (async (...args) => {%s})(...[...arguments].slice(0, -1))"
        )
        tail = ".then(done, (error) => done({error: String(error)}))"
        return await self.command("execute/async", script=wrapped % script + tail, args=list(args))

    async def devtools(self, command: str, **params: Any) -> Any:
        """A command of the DevTools protocol."""
        return await self.command("goog/cdp/execute", cmd=command, params=params)

    async def look(self, width: int, scheme: Literal["light", "dark"]) -> None:
        """So wide a window, in this scheme."""
        await self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        await self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def picture(self, file: Path) -> None:
        """All of the page, as PNG."""
        shot = await self.devtools("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    async def press(self, *keys: str) -> None:
        """One key after the other."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        await self.command("actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    async def said(self, kind: Literal["browser", "performance"]) -> list[Mapping[str, Any]]:
        """The log since it was asked last: of the page, or of the network."""
        found: list[Mapping[str, Any]] = await self.command("se/log", type=kind)
        return found


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Browser]:
    """A new browser that has seen nothing; what it writes lies in `profile`."""
    driver, port = await _driver()
    try:
        url = f"http://127.0.0.1:{port}/session"
        async with aiohttp.ClientSession() as session:
            found = await _session(session, url, profile)
            try:
                yield Browser(session, f"{url}/{found}")
            finally:
                async with session.delete(f"{url}/{found}"):
                    pass
    finally:
        driver.terminate()
        await driver.communicate()


async def _driver() -> tuple[asyncio.subprocess.Process, int]:
    """A chromedriver and its port. It ends where somebody else was given the port that it had chosen."""
    for _ in range(3):
        driver = await asyncio.create_subprocess_exec(
            "chromedriver", "--port=0", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert driver.stdout is not None
        async with asyncio.timeout(30):
            async for line in driver.stdout:
                if found := re.search(rb"started successfully on port (\d+)", line):
                    return driver, int(found[1])
            await driver.wait()
    raise AssertionError("chromedriver has ended three times")


async def _session(session: aiohttp.ClientSession, url: str, profile: Path) -> str:
    arguments = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
    ]  # fmt: skip
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": {"args": arguments, "binary": shutil.which("chromium")},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        "acceptInsecureCerts": True,
    }
    async with session.post(url, json={"capabilities": {"alwaysMatch": wanted}}) as response:
        value = (await response.json())["value"]
        assert response.status == 200, value
        return str(value["sessionId"])
