"""Seals a test message to our own domain and one to each peer, with real policies and keys, and delivers none.
Results are discarded; store, secret and audit record are temporary.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from relay.config import Config
from relay.errors import RelayError
from relay.identity import only_sending
from relay.journey.sealing import SealedCopy
from relay.journey.tripwire import check_sealed
from relay.mail import Envelope, Mail, Recipient
from relay.process import assembly

Result = tuple[str, str, str]
"""The recipient, the outcome, and the fault, or ""."""


async def rehearse(config: Config) -> list[Result]:
    """The outcome of a mail to our first domain and to each peer's. Uses one key for each peer.

    Raises ConfigError and StoreUnavailable.
    """
    own = config.site.domains[0]
    with tempfile.TemporaryDirectory(prefix="qumail-relay-test-") as work:
        async with assembly.parts(_aside(config, Path(work)), prefetch=False) as parts:
            results = [_inside(own, await _sealed(parts, own, own))]
            only_send = only_sending(parts.sites.planner().certificates)
            for name, peer in parts.config.peers.items():
                domain = peer.domains[0]
                if name in only_send:
                    results.append((f"{domain} (peer {name})", "cannot receive, by its document: it is refused", ""))
                    continue
                results.append(_to_peer(name, domain, await _sealed(parts, own, domain), config.all_in_clear))
            return results


def _aside(config: Config, work: Path) -> Config:
    """The configuration with temporary state."""
    store = config.store.model_copy(update={"database": work / "relay.db", "secret": work / "site.secret"})
    audit = config.audit.model_copy(update={"directory": work / "audit"})
    return config.model_copy(update={"store": store, "audit": audit})


async def _sealed(parts: assembly.Parts, own: str, domain: str) -> SealedCopy | RelayError:
    sender, recipient = f"postmaster@{own}", f"postmaster@{domain}"
    message = (
        f"From: {sender}\r\nTo: {recipient}\r\nSubject: test of QuMail Relay\r\n"
        f"Date: {format_datetime(datetime.now(UTC))}\r\nMessage-ID: <test@{own}>\r\n\r\nA test message.\r\n"
    ).encode()
    sealed = await parts.sealer.seal(Mail(Envelope(sender, (Recipient(recipient),)), message))
    for failure in sealed.failures.values():
        return failure
    [copy] = sealed.copies
    return copy


def _inside(domain: str, outcome: SealedCopy | RelayError) -> Result:
    if isinstance(outcome, RelayError):
        return domain, "", f"mail of our own is held or refused: {outcome}"
    return domain, f"goes on as policy says: {outcome.protection}", ""


def _to_peer(name: str, domain: str, outcome: SealedCopy | RelayError, all_in_clear: str) -> Result:
    to = f"{domain} (peer {name})"
    if isinstance(outcome, RelayError):
        return to, "", str(outcome)
    if outcome.in_clear or all_in_clear:
        # The administrator wants it: no reason to let all other mail bypass the relay.
        return to, f"leaves IN CLEAR: {all_in_clear or outcome.policy}", ""
    check_sealed(outcome.message, outcome.protection)
    bits = f", {outcome.quantum_bits} bits of quantum key" if outcome.quantum_bits else ", no quantum key"
    return to, f"sealed: {outcome.protection}{bits}", ""
