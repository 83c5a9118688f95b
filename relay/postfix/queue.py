"""Queued mail whose content filter is the relay: each mail keeps its own filter, whatever main.cf says later.
Standard: postqueue(1) -j and postcat(1) -e. Postfix asks no milter about requeued mail (postsuper -r).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relay.config import Config
from relay.errors import ConfigError
from relay.mail import domain_of
from relay.policy.names import printable
from relay.postfix.flow import MailFlow, destination, listens
from relay.postfix.ours import TRANSPORT, directions
from relay.postfix.settings import PostfixFault, PostfixSettings, command

AT_ONCE = 1000
"""Number of mails for one command; any number of mails is read."""
WAITS_S = 900.0
"""Minimum age of mail that is reported as waiting, in seconds: greylisting is no fault."""
_FILTER, _HELD = "content_filter: ", "it is on hold"
_BEGINS = "*** ENVELOPE RECORDS "


class QueueUnknown(ConfigError):
    """The queue cannot be read."""


async def filtered(directory: Path) -> list[str]:
    """The relay's content filter of each queued mail that has one.

    Raises QueueUnknown if any of the queue is unreadable, for instance by another user than root.
    """
    ids = await _queued(directory)
    said = "".join([await _envelopes(directory, ids[at : at + AT_ONCE]) for at in range(0, len(ids), AT_ONCE)])
    filters = [line.removeprefix(_FILTER).strip() for line in said.splitlines() if line.startswith(_FILTER)]
    return [each for each in filters if (to := destination(each)) is not None and to[0] == TRANSPORT]


def without_way(waiting: Sequence[str], settings: PostfixSettings, config: Config) -> list[str]:
    """The filters that lead nowhere: missing in master.cf, or without a listener of the relay."""
    here = settings.service(TRANSPORT, "unix") is not None
    return [each for each in waiting if not (here and _listens(config, each))]


async def stranded(flow: MailFlow) -> list[PostfixFault]:
    """Faults for queued mail with a missing filter, or for a queue that root cannot read."""
    directory = flow.settings.directory
    try:
        waiting = await filtered(directory)
    except QueueUnknown as error:
        if os.geteuid():
            return []
        remedy = (
            "`postqueue -j` has to list the queue, and `postcat -eq ID` each mail in it: mend what they complain of"
        )
        return [PostfixFault("queue-unknown", f"queue of {directory}", f"it cannot be read: {error}", remedy)]
    gone = without_way(waiting, flow.settings, flow.config)
    if not gone:
        return []
    text = (
        f"{len(gone)} of the mails in it go to {gone[0]}, where by relay.toml the relay does not take mail: once it "
        "was restarted with that file, they never leave. Do not requeue them (`postsuper -r`): Postfix asks no milter "
        "about such mail, and it would leave IN CLEAR"
    )
    remedy = (
        "go back to the former integration (`qumail-relay setup --replace --integration content-filter`), restart "
        "the relay, and have `postqueue -f` empty the queue; then change the integration"
    )
    return [PostfixFault("queue-stranded", f"queue of {directory}", text, remedy)]


async def behind_the_relay(flow: MailFlow) -> list[PostfixFault]:
    """Faults for mail to this site or its peers that has left the relay and waits here, or is on hold."""
    directory, config = flow.settings.directory, flow.config
    peers = [domain for peer in config.peers.values() for domain in peer.domains] if flow.watched is not None else []
    late: dict[str, dict[str, str]] = {}
    reasons: dict[str, str] = {}
    try:
        for mail in await _listed(directory):
            held = _HELD if mail["queue_name"] == "hold" else ""
            waits = {
                domain_of(each["address"]).lower(): reason
                for each in mail["recipients"]
                if (reason := held or each.get("delay_reason")) and time.time() - mail["arrival_time"] >= WAITS_S
            }
            if not waits.keys().isdisjoint((*config.site.domains, *peers)):
                late[mail["queue_id"]] = waits
        ids = list(late)
        for at in range(0, len(ids), AT_ONCE):
            _, *envelopes = (await _envelopes(directory, ids[at : at + AT_ONCE])).split(_BEGINS)
            # What still has a content filter has not been to the relay, which reports what it holds itself.
            for each in envelopes:
                waits = late.get(each.partition(" ")[0].rpartition("/")[2], {})
                if _FILTER not in each or _HELD in waits.values():
                    reasons = waits | reasons
    except (QueueUnknown, ValueError, KeyError, TypeError):  # `stranded` says that it cannot be read
        return []
    remedy = "mend the cause, then have `postqueue -f` try all mail again; `postsuper -H ALL` ends a hold"
    return [
        PostfixFault("waits-behind", f"queue of {directory}", f"mail to {domain} waits: {printable(reason)}", remedy)
        for domain, reason in reasons.items()
        if domain in {*config.site.domains, *peers}
    ]


async def _queued(directory: Path) -> list[str]:
    """The queue IDs of all mails; none if Postfix has no queue yet. Raises QueueUnknown."""
    return [mail["queue_id"] for mail in await _listed(directory)]


async def _listed(directory: Path) -> list[dict[str, Any]]:
    """All mails as postqueue(1) -j has them; none if Postfix has no queue yet. Raises QueueUnknown."""
    try:
        listed, _ = await command("postqueue", directory, "-j")
        return [mail for line in listed.splitlines() if (mail := json.loads(line))["queue_id"]]
    except (ConfigError, ValueError, KeyError, TypeError) as error:
        if await _has_queue(directory):
            raise QueueUnknown(f"the queue cannot be listed: {error}") from error
        return []


async def _has_queue(directory: Path) -> bool:
    """Whether mail may be queued: Postfix makes the queue directories at its first start."""
    try:
        queue, _ = await command("postconf", directory, "-hx", "queue_directory")
        return await asyncio.to_thread(_is_made, Path(queue.strip()))
    except FileNotFoundError:
        return False
    except (ConfigError, OSError):
        return True


def _is_made(queue: Path) -> bool:
    return not {"maildrop", "incoming", "active", "deferred", "hold"}.isdisjoint(each.name for each in queue.iterdir())


async def _envelopes(directory: Path, ids: Sequence[str]) -> str:
    """postcat's output for those mails that are still queued. Raises QueueUnknown."""
    try:
        return (await command("postcat", directory, "-eq", *ids))[0]
    except ConfigError:
        said, unread = "", {}
    for each in ids:  # one has left since, or is unreadable
        try:
            said += (await command("postcat", directory, "-eq", each))[0]
        except ConfigError as error:
            unread[each] = error
    still = unread.keys() & set(await _queued(directory)) if unread else ()
    for each in still:
        raise QueueUnknown(f"postcat: {unread[each]}")
    return said


def _listens(config: Config, value: str) -> bool:
    target = destination(value)
    return target is None or any(listens(each, target[1]) for each in directions(config))
