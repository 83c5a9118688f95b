"""One crash test: mail flows under fire, then everything is mended, then every promise is checked.
Standard: each recipient has each message, octet for octet; nothing leaks. One loss is excused: a reply of Bob's KME
that was on its way when the wire between the two broke, for no KME of this kind gives a key again.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiosmtplib

from relay.errors import BadStructure
from relay.formats import mime
from relay.kme import DevelopmentKMEs, LinkSettings
from tests.system.crash import traffic
from tests.system.crash.accounts import Accounts, Spans
from tests.system.crash.faults import GENTLE, Chaos, faults
from tests.system.crash.traffic import Message
from tests.system.crash.watch import Watch, key_ids
from tests.testlib.databases import PostgreSQLServer
from tests.testlib.identities import Identities
from tests.testlib.mail_site import MailSite, mail_site
from tests.testlib.ports import free_addresses
from tests.testlib.sink import Got
from tests.testlib.submit import SMTPReply
from tests.testlib.wire import Wire

SUBMITTERS = 4
READINGS = 20
SETTLE_S = 120.0
FLUSH_S = 5.0
LOSES_ANSWERS = ("killed", "sealed_", "opened_")
"""Words of the faults that a next hop's answer can be lost by."""
PLACES = ("alice, unsealed", "alice", "bob", "bob, in clear", "bob, mailboxes")
"""Where a copy passes from a relay, and at last from Bob's Postfix, into the next hop."""
GAP_S = 1.0
"""On a busy machine the next hop itself takes a part of this to answer."""
POSTFIX = {
    "minimal_backoff_time": "1s",
    "maximal_backoff_time": "2s",
    "queue_run_delay": "1s",
    "default_destination_concurrency_failed_cohort_limit": "1000",
    "smtp_connect_timeout": "3s",
    "smtp_helo_timeout": "5s",
    "smtp_data_done_timeout": "20s",
    "lmtp_data_done_timeout": "20s",
    "message_size_limit": "30000000",
}
"""A Postfix that does not wait long before it tries again."""
RELAY = "timeout = 5\n"
SITES = ("alice", "bob")
BOBS_POLICIES = dict.fromkeys(("default.toml", "alice.example.toml"), 'levels = ["plaintext"]\n')


@dataclass
class Report:
    """What a run has found; `faults` are broken promises, and there must be none.

    Of the keys issued to Alice some were used, some burnt (written down, and never used), some came in no reply that
    was read. Of those given to Bob all are in Bob's store but for those that got lost on the wire.
    """

    messages: int = 0
    deliveries: int = 0
    repeated: int = 0
    twice_without_a_kill: list[str] = field(default_factory=list)
    lost_on_the_wire: int = 0
    keys_issued: int = 0
    keys_used: int = 0
    keys_burnt: int = 0
    keys_unread: int = 0
    keys_given: int = 0
    keys_lost_on_the_wire: int = 0
    unused_in_war: int = 0
    events: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass
class Battlefield:
    """Both sites, what they share, and who looks."""

    alice: MailSite
    bob: MailSite
    kmes: DevelopmentKMEs
    watch: Watch
    accounts: Accounts


@asynccontextmanager
async def battlefield(
    directory: Path, identities: Identities, databases: Sequence[str], relays: int, workers: int
) -> AsyncIterator[Battlefield]:
    """Two whole sites that run, with so many relays each on one database, each relay of so many workers."""
    limits = f"\n[limits]\nworkers = {workers}\n"
    link = LinkSettings(
        max_sae_id_count=0,  # no key is spent on a trial
        key_rate=1e9,
        stored_key_limit=4_000_000,
        max_key_size=1_000_000,
        max_key_per_request=1000,
        lifetime=86_400,
        remembered=1_000_000,
    )
    alice_smtp, bob_smtp = free_addresses(2)
    watch = Watch()
    async with AsyncExitStack() as stack:
        kmes = await stack.enter_async_context(
            DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link)
        )
        to_alice = await stack.enter_async_context(Wire(alice_smtp))
        to_bob = await stack.enter_async_context(Wire(bob_smtp, watch.at("between the sites")))
        alice = await stack.enter_async_context(
            mail_site(
                directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], smtp=alice_smtp,
                inbound=to_alice, peer_inbound=to_bob, policies=traffic.POLICIES, identities=identities,
                settings=RELAY, postfix_settings=POSTFIX, database=databases[0], relays=relays, tables=limits,
            )
        )  # fmt: skip
        bob = await stack.enter_async_context(
            mail_site(
                directory / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], smtp=bob_smtp,
                inbound=to_bob, peer_inbound=to_alice, policies=BOBS_POLICIES,
                identities=identities, settings=RELAY, postfix_settings=POSTFIX,
                database=databases[1], relays=relays, tables=limits,
            )
        )  # fmt: skip
        alice.sealed.watch = watch.of_sealed("alice")
        for wire in (alice.kme, bob.kme):
            wire.watch = watch.at("to a KME")
        alice.opened.watch = watch.of_opened("alice, unsealed")  # where her users' mail passes first
        bob.opened.watch = watch.of_opened("bob")
        bob.sealed.watch = watch.of_opened("bob, in clear")  # to Bob's users, as the policy there says
        yield Battlefield(alice, bob, kmes, watch, Accounts(kmes.link))


async def run(
    directory: Path,
    identities: Identities,
    *,
    messages: int,
    seed: int,
    largest: int = 5_000_000,
    pause: float = 0.7,
    gap: float = 0.25,
    control: int = 5,
    only: Sequence[str] = (),
    postgresql: PostgreSQLServer | None = None,
    relays: int = 1,
    workers: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Sends `messages` of up to `largest` octets under fire, `control` more in peace, and checks all of them.

    `pause` is the average time between two faults at one site, `gap` that between two messages, in seconds. With
    `only`, the faults are those whose names have one of these words. With `postgresql` the stores are its databases
    `alice` and `bob`, for `relays` relays each. Each relay is so many `workers`.
    """
    began = time.monotonic()
    report = Report()
    databases = [postgresql.url(name) for name in SITES] if postgresql else ["relay.db"] * len(SITES)
    async with battlefield(directory, identities, databases, relays, workers) as field_:
        everything = [traffic.message(number, seed, largest) for number in range(messages)]
        chaos = [
            Chaos(site, seed, pause, only, faults(site.name, postgresql, workers))
            for site in (field_.alice, field_.bob)
        ]
        async with asyncio.TaskGroup() as war:
            for each in chaos:
                war.create_task(each.run())
            await _submit_all(field_.alice, everything, progress, random.Random(seed), gap)
            await _quiet(field_, everything, progress, for_s=SETTLE_S / 8)
            for each in chaos:
                each.stop()
        progress("mended")
        for site in (field_.alice, field_.bob):
            await site.mend()
        await _quiet(field_, everything, progress, for_s=SETTLE_S)
        report.unused_in_war = len(field_.accounts.issued) - len(field_.watch.sealed_under)
        in_peace = [traffic.message(number, seed, 20_000) for number in range(messages, messages + control)]
        await _submit_all(field_.alice, in_peace, progress, random.Random(seed), 0)
        await _quiet(field_, everything + in_peace, progress, for_s=SETTLE_S)
        report.events = sum((each.happened for each in chaos), Counter())
        times = {each.site.name: each.times for each in chaos}
        report.twice_without_a_kill = _without_a_kill(field_, times)
        wire_broken = [(began, ended) for name, began, ended in times["bob"] if name.startswith("kme_")]
        await _check(report, field_, everything + in_peace, in_peace, wire_broken)
        both = [(began, ended) for name, began, ended in times["bob"] if name.startswith("database")]
        wrong = [(began, ended) for _, began, ended in times["alice"]] + both
        await _check_keys(report, field_, wrong, wire_broken)
        for site in (field_.alice, field_.bob):
            (site.site.directory / "postfix.log").write_text(site.postfix.log)
    report.seconds = time.monotonic() - began
    return report


async def _submit_all(
    site: MailSite,
    messages: Sequence[Message],
    progress: Callable[[str], None],
    chance: random.Random,
    gap: float,
) -> None:
    """Into the site's Postfix, on average one in `gap` seconds."""
    waiting = iter(messages)

    async def submitter() -> None:
        for each in waiting:
            await asyncio.sleep(2 * gap * SUBMITTERS * chance.random())
            async with site.postfix_works:
                reply = await _submitted(site, each)
            assert reply.code == 250, reply
            if each.number % 50 == 0:
                progress(f"message {each.number} submitted")

    async with asyncio.TaskGroup() as group:
        for _ in range(SUBMITTERS):
            group.create_task(submitter())


async def _submitted(site: MailSite, message: Message) -> SMTPReply:
    """What Postfix says, once it takes the connection: on a busy machine, new after a kill, it may not at first."""
    async with asyncio.timeout(120):
        while True:
            with suppress(aiosmtplib.SMTPConnectError, aiosmtplib.SMTPConnectTimeoutError):
                return await site.postfix.submit(message.octets, recipients=message.recipients)
            await asyncio.sleep(0.5)


async def _quiet(
    field_: Battlefield, messages: Sequence[Message], progress: Callable[[str], None], *, for_s: float
) -> None:
    """Waits until everything has arrived, or nothing more has for a while, at most `for_s` seconds.

    While nothing arrives, both Postfixes try again what they have put aside.
    """
    wanted = {(each.number, recipient) for each in messages for recipient in each.recipients}
    deadline = time.monotonic() + for_s
    missing = len(wanted)
    changed = flushed = time.monotonic()
    while time.monotonic() < deadline:
        now = len(wanted - set(_arrived(field_.bob)))
        if now == 0:
            return
        if now != missing:
            missing, changed = now, time.monotonic()
            progress(f"{missing} deliveries missing")
        elif time.monotonic() - flushed > FLUSH_S:
            flushed = time.monotonic()
            for site in (field_.alice, field_.bob):
                async with site.postfix_works:
                    with suppress(OSError):  # it was killed a moment ago, and its processes are still coming up
                        await site.postfix.flush()
        if time.monotonic() - changed > max(15.0, for_s / 4):
            return
        await asyncio.sleep(0.5)


def _without_a_kill(field_: Battlefield, times: dict[str, list[tuple[str, float, float]]]) -> list[str]:
    """What came twice though nothing happened when the first copy was on its way into the next hop.

    The gap that SMTP leaves (RFC 1047) is from the end of the content to the record of the answer.
    """
    without = []
    delivered: defaultdict[tuple[int, str], list[float]] = defaultdict(list)
    for got in field_.bob.mailboxes.got:
        for recipient in got.recipients:
            delivered[_number(got), recipient].append(got.at)
    for (number, recipient), copies in _arrived(field_.bob).items():
        explained = 0
        passed = {place: list(field_.watch.passed[place, number, recipient]) for place in PLACES}
        passed["bob, mailboxes"] = delivered[number, recipient]
        for place, at in passed.items():
            happened = times[place.partition(",")[0]]
            faults_here = [span for name, *span in happened if any(word in name for word in LOSES_ANSWERS)]
            explained += sum(any(began - GAP_S <= when <= ended for began, ended in faults_here) for when in at[:-1])
        if copies - 1 > explained:
            without.append(f"message {number} for {recipient}: {copies} copies, passed at {passed}")
    return without


def _arrived(site: MailSite) -> Counter[tuple[int, str]]:
    return Counter((_number(got), recipient) for got in site.mailboxes.got for recipient in got.recipients)


def _number(got: Got) -> int:
    begin = got.message.index(b"Message-ID: <") + len(b"Message-ID: <")
    return int(got.message[begin : got.message.index(b".", begin)])


async def _check(
    report: Report,
    field_: Battlefield,
    messages: Sequence[Message],
    in_peace: Sequence[Message],
    wire_broken: Spans,
) -> None:
    """Every promise, against what is in the mailboxes, queues, files and accounts.

    `wire_broken` is when the wire between Bob and the KME there was.
    """
    broken_promises = report.faults
    known = {each.number: each for each in messages}
    report.messages = len(messages)
    for got in field_.bob.mailboxes.got:
        original = known[_number(got)]
        part = got.message[len(got.message) - len(original.octets) :]
        if hashlib.sha256(part).hexdigest() != original.digest:
            broken_promises.append(f"message {original.number} arrived changed")
        for recipient in set(got.recipients) - set(original.recipients):
            broken_promises.append(f"message {original.number} arrived at {recipient}, for whom it was not")
    arrived = _arrived(field_.bob)
    report.deliveries = len(arrived)
    report.repeated = sum(number - 1 for number in arrived.values())
    if report.repeated and all(any(word in name for word in GENTLE) for name in report.events):
        broken_promises.append(f"{report.repeated} deliveries came twice, though no answer was lost")
    broken_promises += [f"came twice with no kill in the gap of SMTP: {what}" for what in report.twice_without_a_kill]
    sealed = await _sealed_in_queue(field_.bob)
    reasons = {each.recipient: f"{each.queue}, {each.reason}" for each in await field_.bob.postfix.queue()}
    before = await _in_queue(field_.alice)
    reasons_before = {each.recipient: f"{each.queue}, {each.reason}" for each in await field_.alice.postfix.queue()}
    for each in messages:
        missing = [recipient for recipient in each.recipients if not arrived[each.number, recipient]]
        waiting = sealed.get(each.number, {})
        for recipient in missing:
            lost = waiting.get(recipient)
            if lost is None and recipient in before.get(each.number, ()):
                broken_promises.append(
                    f"message {each.number} was not sealed for {recipient}; Postfix says: {reasons_before.get(recipient)}"
                )
            elif lost is None:
                broken_promises.append(f"message {each.number} is lost for {recipient}")
            elif field_.accounts.lost_on_the_wire(lost, wire_broken):
                report.lost_on_the_wire += 1
            else:
                given = len(lost & field_.accounts.given.keys())
                broken_promises.append(
                    f"message {each.number} waits for {recipient}; its KME gave {given} of its keys away; "
                    f"Postfix says: {reasons.get(recipient)}"
                )
        if each in in_peace and any(arrived[each.number, recipient] != 1 for recipient in each.recipients):
            times = {recipient: arrived[each.number, recipient] for recipient in each.recipients}
            broken_promises.append(f"message {each.number}, sent in peace, arrived so many times: {times}")
    for site in (*field_.alice.sites, *field_.bob.sites):
        field_.watch.look_into_files(site.directory)
    broken_promises += [f"plaintext was seen: {place}" for place in dict.fromkeys(field_.watch.seen)]


async def _check_keys(report: Report, field_: Battlefield, wrong: Spans, wire_broken: Spans) -> None:
    """Each key under one ciphertext, and in an account; in peace none is burnt."""
    used = field_.watch.sealed_under
    report.keys_used, report.keys_issued = len(used), len(field_.accounts.issued)
    report.keys_given = len(field_.accounts.given)
    report.faults += [
        f"key {key_ID} is under {len(those)} ciphertexts" for key_ID, those in used.items() if len(those) > 1
    ]
    # Fewer than before are fine: keys that were at hand when peace came have been used since.
    if (in_peace := report.keys_issued - report.keys_used - report.unused_in_war) > 0:
        report.faults.append(f"{in_peace} keys were burnt in peace")
    for site in (field_.alice, field_.bob):
        await site.stop_relays()
    alice, bob = field_.alice.site, field_.bob.site
    report.keys_burnt, report.keys_unread, broken = await field_.accounts.check_alice(alice, used.keys(), wrong)
    report.faults += broken
    report.keys_lost_on_the_wire, broken = await field_.accounts.check_bob(bob, wire_broken)
    report.faults += broken


async def _in_queue(site: MailSite) -> dict[int, dict[str, bytes]]:
    """By number and recipient, the messages that wait in a site's queue."""
    found: dict[int, dict[str, bytes]] = defaultdict(dict)
    for name, recipients in (await site.postfix.queued_names()).items():
        message = await _read_from_queue(site, name)
        if not message:
            continue
        number = int(message.split(b"Message-ID: <")[1].split(b".")[0])
        found[number] |= dict.fromkeys(recipients, message)
    return found


async def _read_from_queue(site: MailSite, name: str) -> bytes:
    """A message that waits; b"" where it waits no more. A file that goes to another queue just now is read again."""
    before = b""
    for _ in range(READINGS):
        if (message := await site.postfix.queued_message(name)) and message == before:
            return message
        before = message
        if not message and name not in await site.postfix.queued_names():
            return b""
    return before


async def _sealed_in_queue(site: MailSite) -> dict[int, dict[str, set[str]]]:
    """The same, with the key_IDs that each sealed message names; none where it is not sealed, or is so no more."""

    def names(message: bytes) -> set[str]:
        try:
            return key_ids(mime.sealed_content(message))
        except BadStructure:
            return set()

    return {
        number: {recipient: names(message) for recipient, message in waiting.items()}
        for number, waiting in (await _in_queue(site)).items()
    }
