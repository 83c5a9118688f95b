"""Watches the Postfix beside a serving relay: judges it at start, after a change of its files, and periodically.
No mail waits for it. Files and postconf(1) are read in a thread with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from relay.config import Config
from relay.errors import ConfigError
from relay.files.stamps import Stamps, stamp_of
from relay.postfix import KEEPS_BACK, PAST_THE_RELAY, UNJUDGED, Judgement, PostfixFault, judge
from relay.postfix.running import not_started_since

log = structlog.get_logger(__name__)

LOOK_S = 5.0
"""Poll interval of the files' metadata, in seconds."""
ANEW_S = 600.0
"""Maximum age of a judgement, in seconds: not all that Postfix reads is a file."""
JUDGE_S = 30.0
"""Timeout of a judgement, in seconds."""
STALE_S = 60.0
"""Maximum age of the last poll, in seconds."""
MAX_SHOWN = 3
"""Maximum number of findings in a cause."""
_ADDRESS = re.compile(r"[^\s,:]+@[^\s,:]+")


class PostfixWatch:
    """The last judgement: `past` maps codes to faults by which mail may bypass the relay, arrive unopened or be lost.

    `kept_back` maps codes to faults by which Postfix holds or refuses mail. `former` is why Postfix may still use
    former settings, "" if it was started since. `unjudged` are settings that no rule is about.
    """

    def __init__(self, directory: Path, config: Callable[[], Config]) -> None:
        """Reads nothing yet. `config` returns relay.toml with the peers of now."""
        self._directory = directory
        self._config = config
        self._judged_by: Config | None = None
        self._stamps: Stamps = {}
        self._files = frozenset({directory / "main.cf", directory / "master.cf"})
        self._started: Path | None = None
        self._judged_at = -ANEW_S
        self._looked_at = time.monotonic()
        self._unknown = "it has not been judged yet"
        self.past: dict[str, str] = {}
        self.kept_back: dict[str, str] = {}
        self.former = self.unjudged = ""

    @property
    def unknown(self) -> str:
        """Why it is unknown whether mail bypasses the relay, "" if it is known."""
        ago = time.monotonic() - self._looked_at
        return self._unknown if ago <= STALE_S else f"{self._directory}: nobody has looked for {ago:.0f} s"

    async def keep_up(self) -> None:
        """Polls every LOOK_S seconds, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - the next look may succeed
                self._cannot(f"{type(error).__name__}: {error}")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Judges again if a file or the peers have changed, or the judgement is old."""
        # Stamped before the files are read: a file that changes meanwhile, or is new, causes another judgement.
        stamps = await asyncio.to_thread(_stamps, self._files)
        self._looked_at = time.monotonic()
        config = self._config()
        same = stamps == self._stamps and config is self._judged_by
        if same and self._looked_at - self._judged_at < ANEW_S:
            if self.former and self._started is not None:
                self.former = await asyncio.to_thread(not_started_since, stamps, self._started)
            return
        try:
            judgement = await asyncio.to_thread(_judged, self._directory, config)
        except ConfigError as error:
            self._cannot("; ".join(error.problems))
        else:
            self.former = await asyncio.to_thread(not_started_since, stamps, judgement.started)
            past, kept_back = judgement.among(PAST_THE_RELAY), judgement.among(KEEPS_BACK)
            self.past, self.kept_back = by_code(past), by_code(kept_back)
            self._unknown = shown(judgement.unread)
            self.unjudged = shown(judgement.among(frozenset({UNJUDGED})))
            self._files, self._stamps, self._started = judgement.files, stamps, judgement.started
            self._judged_by = config
            number = {"past_the_relay": len(past), "kept_back": len(kept_back), "unread": len(judgement.unread)}
            log.info("postfix_judged", directory=str(self._directory), **number)
        self._looked_at = self._judged_at = time.monotonic()

    def _cannot(self, cause: str) -> None:
        if cause != self._unknown:
            log.warning("postfix_not_judged", directory=str(self._directory), cause=cause)
        self._unknown, self._stamps = cause, {}


def by_code(faults: Iterable[PostfixFault]) -> dict[str, str]:
    """The findings by code, as `shown`."""
    found: dict[str, list[PostfixFault]] = {}
    for each in faults:
        found.setdefault(each.code, []).append(each)
    return {code: shown(those) for code, those in found.items()}


def shown(faults: Iterable[PostfixFault]) -> str:
    """The findings in one line, without people's addresses from tables."""
    lines = [_ADDRESS.sub("an address", str(each)) for each in faults]
    more = f"; and {len(lines) - MAX_SHOWN} more" if len(lines) > MAX_SHOWN else ""
    return f"{'; '.join(lines[:MAX_SHOWN])}{more}"


def _judged(directory: Path, config: Config) -> Judgement:
    """The judgement. Blocks. Raises ConfigError."""

    async def bounded() -> Judgement:
        async with asyncio.timeout(JUDGE_S):
            return await judge(directory, config)

    try:
        return asyncio.run(bounded())
    except TimeoutError:
        raise ConfigError(f"{directory}: not read within {JUDGE_S:.0f} s") from None


def _stamps(files: Iterable[Path]) -> Stamps:
    """The files' metadata. Blocks."""
    return {file: stamp_of(file) for file in files}
