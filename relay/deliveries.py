"""Brings every form of a mail to the next hop once, over as many tries as it takes.
Standard: RFC 5321 6.1; SMTP answers once for all recipients, so what has left is remembered for the retry.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict

import structlog

from relay.errors import RelayError, StoreUnavailable, TryLater
from relay.keys import KeyReference
from relay.levels.content import off_loop
from relay.mail import Mail
from relay.sealing import Form
from relay.store import Journal, JournalForm, mail_key

log = structlog.get_logger(__name__)


class Deliveries:
    """The delivery of mails in one or several forms; keeps sealed forms, so that a retry spends no second key."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def begun_before(self, mail: Mail) -> list[Form]:
        """The forms of a mail whose delivery was begun and not completed; none for a new mail.

        One that was to leave in clear is not among them: policy is asked again, since it may have changed.
        """
        if self._journal.empty:
            return []
        remembered = await self._journal.recall(await _key(mail))
        if remembered:
            log.info("delivery_resumed", delivered=sum(form.delivered for form in remembered), forms=len(remembered))
        forms = [_form(mail, each) for each in remembered]
        return [form for form in forms if form.delivered or not form.in_clear]

    async def complete(
        self, mail: Mail, forms: Sequence[Form], hand_on: Callable[[Mail, Form], Awaitable[None]]
    ) -> None:
        """Hands on each form that has not left yet; one that fails does not stop the others.

        Raises what speaks most for trying again, when all have been tried, and remembers the rest for then.
        """
        failures: list[RelayError] = []
        for form in forms:
            if form.delivered:
                continue
            try:
                await hand_on(mail, form)
            except RelayError as error:
                log.warning("form_not_delivered", protection=form.protection, peer=form.peer, cause=str(error))
                failures.append(error)
                continue
            form.delivered = True
            if not all(each.delivered for each in forms):
                await self._remember(mail, forms)
        if failures:
            await self._remember(mail, forms)
            raise min(failures, key=lambda error: not isinstance(error, TryLater))
        if not self._journal.empty:
            await self._forget(mail)

    async def _remember(self, mail: Mail, forms: Sequence[Form]) -> None:
        """Without the journal a retry repeats what has left and spends another key, but nothing is lost."""
        try:
            await self._journal.remember(await _key(mail), [_entry(form) for form in forms])
        except StoreUnavailable as error:
            log.error("delivery_not_remembered", cause=str(error))

    async def _forget(self, mail: Mail) -> None:
        try:
            await self._journal.forget(await _key(mail))
        except StoreUnavailable as error:
            log.error("delivery_not_forgotten", cause=str(error))


async def _key(mail: Mail) -> bytes:
    return await off_loop(len(mail.message), mail_key, mail)


def _entry(form: Form) -> JournalForm:
    facts = {
        "protection": form.protection,
        "peer": form.peer,
        "policy": form.policy,
        "policy_version": form.policy_version,
        "keys": [asdict(reference) for reference in form.keys],
        "quantum_bits": form.quantum_bits,
    }
    addresses = tuple(recipient.address for recipient in form.recipients)
    return JournalForm(addresses, form.delivered, facts, None if form.in_clear else form.message)


def _form(mail: Mail, entry: JournalForm) -> Form:
    """The form again; one that was delivered or in clear has no message any more."""
    wanted = set(entry.recipients)
    return Form(
        protection=entry.facts["protection"],
        peer=entry.facts["peer"],
        message=entry.message or b"",
        policy=entry.facts["policy"],
        policy_version=entry.facts["policy_version"],
        keys=tuple(KeyReference(**reference) for reference in entry.facts["keys"]),
        quantum_bits=entry.facts["quantum_bits"],
        recipients=[recipient for recipient in mail.envelope.recipients if recipient.address in wanted],
        delivered=entry.delivered,
    )
