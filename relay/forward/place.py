"""Stands in for the next hop where the mail server keeps the mail (milter): it remembers what was to be sent on.
Standard: what fits is put in the mail's place by whoever has asked; what does not goes to the next hop after all.
"""

from __future__ import annotations

from collections.abc import Callable

from relay.aio import off_loop
from relay.forward import UNSUPERVISED, NextHop, NextHopResult, Supervision
from relay.mail import Envelope, Mail
from relay.opening import Opened


class Place:
    """For one mail; `mail` is what is to be put in its place, or None where nothing is.

    `claimed` is what was opened for that, to be settled once the mail server has it.
    """

    def __init__(self, next_hop: NextHop | Place, fits: Callable[[bytes], bool], envelope: Envelope) -> None:
        """`envelope` is what the mail server has, and keeps."""
        self._envelope = envelope
        self._next_hop = next_hop
        self._fits = fits
        self.mail: Mail | None = None
        self.claimed: Opened | None = None
        self.handed_on = False

    async def deliver(self, mail: Mail, supervision: Supervision = UNSUPERVISED) -> NextHopResult:
        """Accepts what fits; for the rest it is as the next hop says."""
        if self._is_other(mail) or not await off_loop(len(mail.message), self._fits, mail.message):
            self.handed_on = True
            return await self._next_hop.deliver(mail, supervision)
        supervision.check()
        self.mail = mail
        return NextHopResult((None,) * len(mail.envelope.recipients), "put in place", "milter")

    def _is_other(self, mail: Mail) -> bool:
        """Whether the mail server would send it from somebody else, or tell more of it than it may."""
        told = {each.mailbox: each.notify for each in self._envelope.recipients}
        asked = any(each.notify != told.get(each.mailbox) for each in mail.envelope.recipients)
        return asked or mail.envelope.sender != self._envelope.sender
