"""Renewed certificate files for a KME: they are used once a trial shows that they work no worse than the previous ones.
Standard: ETSI GS QKD 014 V1.1.1, 5.1 and 5.2: a status is asked for over a new connection, which costs no key.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from relay.errors import ConfigError
from relay.keys.events import Complaint, Events
from relay.keys.faults import KMEFault
from relay.keys.health import Health
from relay.keys.http import HTTPReply, NoAnswer, Question
from relay.keys.replies import KeyStatus
from relay.runtime.aio import begun, goes_on

if TYPE_CHECKING:
    from relay.keys.transport import Transport

log = Events(__name__)

LOOK_EVERY_S = 1.0
"""Minimum interval between checks of the files, in seconds."""
TRY_EVERY_S = 10.0
"""Retry interval for files that the KME did not accept, in seconds: its operator may update later."""


_NOT_BY_TLS, _NO_REPLY = -1, 0
"""Instead of an HTTP status: a certificate was not accepted, or the KME did not answer."""


class Renewal:
    """Renewal of the certificate files of one client."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        state: Health,
        status_question: Callable[[str], Question[KeyStatus]],
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        """The parts of the client called `name`; `timeout` is that of a call, in seconds."""
        self._name = name
        self._transport = transport
        self._state = state
        self._status_question = status_question
        self._timeout = timeout
        self._clock = clock
        self._sae = ""
        self._new: ssl.SSLContext | None = None
        self._looked_at = self._tried_at = float("-inf")
        self._trying: asyncio.Task[None] | None = None
        self._complaint = Complaint(log.error, log.debug, "kme_certificates_refused", self._clock)
        self.refused = ""
        """Why the current files are not used, or ""."""

    def look(self, *, anyway: bool = False) -> None:
        """Reloads changed files, or all with `anyway`; without a trial if the KME was not used yet."""
        now = self._clock()
        if not anyway and now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        if (changed := self._transport.tls.changed) or anyway:
            self._read(changed=changed)
        if self._new is not None and not goes_on(self._trying) and now - self._tried_at >= TRY_EVERY_S:
            self._tried_at = now
            self._trying = begun(self._try(self._new), "try renewed certificates")

    def _read(self, *, changed: bool) -> None:
        try:
            context = self._transport.tls.renewed()
        except ConfigError as error:
            log.error("kme_certificates_not_renewed", kme=self._name, problems=error.problems)
            self._new, self.refused = None, str(error)
            return
        if self._sae and (changed or self.refused):
            self._new, self._tried_at = context, float("-inf")
        else:
            self._take(context)

    async def before_a_call(self, sae: str) -> None:
        """Checks the files, and waits for the trial of changed ones; `sae` is that of the call."""
        self._sae = sae
        self.look()
        if goes_on(self._trying) and (not self.refused or self._clock() == self._looked_at):
            await asyncio.wait([self._trying])

    async def close(self) -> None:
        """Cancels a trial in progress."""
        if goes_on(self._trying):
            self._trying.cancel()
            await asyncio.gather(self._trying, return_exceptions=True)

    async def _try(self, new: ssl.SSLContext) -> None:
        request, within = self._status_question(self._sae).request, self._timeout
        code, why = await _result(self._transport.send_with(new, request, within))
        # If the previous ones do no better, the files are not at fault.
        before = 200 if code == 200 else (await _result(self._transport.send(request, within, lambda: None)))[0]
        if new is not self._new:
            return  # replaced by newer ones
        if code == 200 or (code > 0 and before != 200):
            self._take(new)
        elif before == 200 or code == _NOT_BY_TLS:
            self.refused = why
            self._complaint.say(kme=self._name, cause=why)

    def _take(self, context: ssl.SSLContext) -> None:
        self._new, self.refused = None, ""
        self._complaint.over()
        self._transport.take(self._name, context)
        self._state.retry_all_now()


async def _result(reply: Awaitable[HTTPReply]) -> tuple[int, str]:
    """The HTTP status or its substitute, and the same in words."""
    try:
        code = (await reply).code
    except NoAnswer as error:
        return _NOT_BY_TLS if error.fault is KMEFault.MISCONFIGURED else _NO_REPLY, str(error)
    return code, f"HTTP {code}"
