"""Generated mails through a relay that runs, and what a reference written from policies/README.md says of each:
`python -m tests.system.policy_wire [MAILS] [--seed SEED]`, outside the suite. Replies, what the next hop or the mail
server got and the layers are compared; mails come in turn by SMTP, submission, LMTP and milter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import miltertest
import structlog
import trustme

from relay.config import TCPAddress
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.policy.load import load_policies
from relay.policy.site import SiteFacts
from tests.integration.entry.milter.mta import MTA, in_thread
from tests.integration.entry.submission.conftest import quick_hasher, write_certificate, write_users
from tests.integration.entry.submission.program import connected
from tests.testlib.address_reference import sender_of
from tests.testlib.identities import Identities, make_identities
from tests.testlib.policy_made import LOCALS, LOGINS, OWN, Made, MadePolicies, message_of
from tests.testlib.policy_reference import Ability, Facts, Reference
from tests.testlib.sink import Sink
from tests.testlib.sites import ANY_SENDER, RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import submit, submit_lmtp

PEERS = {"bob": ["bob.example"]}
OWNERS = dict.fromkeys(PEERS["bob"], "bob")
ABILITY = Ability(frozenset({("smime", "bob")}))
MAILS_EACH = 50
COMPLETE = ("X-Generated: yes", "Date: Wed, 25 Nov 2026 10:00:00 +0000", "Message-ID: <1@alice.example>")
LISTENERS = 'listen = "127.0.0.1:0"\nlmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"\n'
SUBMISSION = """
[submission]
listen_tls = "127.0.0.1:0"
certificate = "relay.pem"
key = "relay.key"
users = "users"
check_from = false
mails_per_user = 100000

[policies]"""


def load(made: Made, directory: Path) -> MadePolicies:
    """A set of files that the relay takes."""
    policies = made.policies()
    faulty = list(policies.scopes)
    shutil.rmtree(directory, ignore_errors=True)
    site = SiteFacts(policies.site.domains, policies.site.tag_separators)
    while faulty:
        for name, text in made.again(policies, faulty).items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)
        try:
            load_policies(directory, PEERS, site=site)
            return policies
        except ConfigError as error:
            faulty = [
                name for name in policies.scopes if any(f"{directory}/{name}:" in each for each in error.problems)
            ]
    raise AssertionError("a set without files")


def facts_of(made: Made) -> Facts:
    """A mail for one recipient, whose envelope a mail server takes."""
    while True:
        facts = made.facts()
        local = made.choice([each for each in LOCALS if not each.startswith(".")])
        facts = replace(facts, recipients=(f"{local}@{facts.recipients[0].rpartition('@')[2]}",))
        known = sender_of(facts.sender) if facts.sender else None
        if facts.sender and (known is None or facts.sender.endswith(".") or len(facts.sender) > 200):
            continue
        domain = facts.recipients[0].rpartition("@")[2]
        if (
            "\x01" in "".join(facts.authors)
            or not domain.isascii()
            or not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", domain)
        ):
            continue
        # Submission would add what is missing, and the message would be larger.
        facts = replace(facts, fields=(*facts.fields, *COMPLETE))
        try:
            message_of(facts)
        except AssertionError:
            continue
        return facts


Way = Literal["smtp", "submission", "lmtp", "milter"]
WAYS: tuple[Way, ...] = get_args(Way)


async def one_mail(way: Way, relay: RelayProcess, trust: ssl.SSLContext, sink: Sink, facts: Facts) -> tuple[str, str]:
    """What became of it, and the reply."""
    message = message_of(facts)
    had, logged = len(sink.got), len(relay.log)
    options = ["BODY=8BITMIME", "SMTPUTF8"]
    envelope: dict[str, Any] = {"sender": facts.sender, "recipients": facts.recipients, "options": options}
    edited: bytes | None = None
    if way == "milter":
        reply, edited = await in_thread(by_milter, relay.addresses["outgoing_milter"], message, facts)
    elif way == "submission":
        reply = await submitted(relay, trust, message, facts)
    elif way == "lmtp":
        [answer] = await submit_lmtp(relay.addresses["outgoing_lmtp"], message, **envelope)
        reply = str(answer)
    else:
        reply = str(await submit(relay.addresses["outgoing"], message, **envelope))
    code = int(reply[:3])
    if 400 <= code < 500:
        word = "held"
    elif code >= 500:
        word = "refused"
    elif edited is not None:
        word = await protection(relay, logged, edited)
    else:
        async with asyncio.timeout(30):
            [got] = (await sink.messages(had + 1))[had:]
        word = await protection(relay, logged, got.message)
    if (word in ("held", "refused") or edited is not None) and len(sink.got) != had:
        word = f"{word}, and yet it left"
    return word, reply


def by_milter(address: TCPAddress, message: bytes, facts: Facts) -> tuple[str, bytes | None]:
    """The reply, and the message that the mail server has afterwards; None where the relay has sent it on itself."""
    mta = MTA(address)
    try:
        mta.negotiate()
        header, _, body = message.decode().partition("\r\n\r\n")
        fields = [
            (name, value.replace("\r\n", "\n"))
            for name, _, value in (each.partition(":") for each in re.split(r"\r\n(?![ \t])", header))
        ]
        answer = mta.mail(
            fields, body, sender=f"<{facts.sender}>", recipients=[f"<{each}>" for each in facts.recipients],
            macros=facts.login is not None, user=facts.login or "",
        )  # fmt: skip
    finally:
        mta.close()
    if answer.text:
        return answer.text, None
    return "250 in place", answer.applied(fields, body) if answer.word == miltertest.SMFIR_ACCEPT else None


async def submitted(relay: RelayProcess, trust: ssl.SSLContext, message: bytes, facts: Facts) -> str:
    """The reply to a user who has logged in."""
    [address] = [each for name, each in relay.addresses.items() if name.startswith("submission")]
    async with connected(address, trust, tls=True) as program:
        await program.ask("EHLO program.example")
        answer = await program.log_in(facts.login or "")
        assert answer.startswith("235"), answer
        commands = [f"MAIL FROM:<{facts.sender}> BODY=8BITMIME SMTPUTF8", f"RCPT TO:<{facts.recipients[0]}>", "DATA"]
        for command in commands:
            reply = await program.ask(command)
            if reply[:3] not in ("250", "354"):
                return reply
        ended = b"" if message.endswith(b"\r\n") else b"\r\n"
        await program.send(message.replace(b"\r\n.", b"\r\n..") + ended + b".\r\n")
        return await program.reply()


async def protection(relay: RelayProcess, logged: int, got: bytes) -> str:
    """The layers by the relay's log, which must fit what has become of the message."""
    async with asyncio.timeout(30):
        while not (lines := left(relay.log[logged:])):
            await asyncio.sleep(0.01)
    [line] = lines
    sealed = b"application/pkcs7-mime" in got or b"application/vnd." in got
    clear = b"\r\nX-Generated: yes\r\n" in got
    assert sealed is not clear, got[:2000]
    word = str(line["protection"]) if "protection" in line else "plaintext"
    assert (word == "plaintext") is clear, line
    return "in clear" if clear else word


def left(log: str) -> list[Mapping[str, object]]:
    """The lines of mail that has left."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in lines if line["event"] in ("sealed_and_sent", "sent_in_clear", "delivered_inside")]


def site_of(
    directory: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities, policies: MadePolicies, ca: trustme.CA
) -> Site:
    """Alice with these policies."""
    site = make_site(
        directory, "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address, policies={},
        identities=identities, peer_settings=ANY_SENDER,
    )  # fmt: skip
    text = site.config_file.read_text()
    text = text.replace('domains = ["alice.example"]', f"domains = {json.dumps(sorted(OWN))}")
    text = text.replace('listen = "127.0.0.1:0"\n', LISTENERS, 1)
    text = text.replace("[policies]", f"{SUBMISSION}\ntag_separators = {json.dumps(policies.site.tag_separators)}")
    site.config_file.write_text(text)
    write_certificate(directory, ca)
    hashed = quick_hasher().hash("correct horse")
    write_users(directory / "users", "".join(f"{name}:{hashed}:*,<>\n" for name in LOGINS))
    return site


async def main(mails: int, seed: int) -> int:
    """Sends them all; the number of those of which the reference says otherwise."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    made, counted, ways, wrong, sent = Made(seed), Counter[str](), Counter[str](), 0, 0
    made.peers, made.named_peers = ("bob",), 0.8
    ca = trustme.CA()
    trust = ssl.create_default_context()
    ca.configure_trust(trust)
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        link = LinkSettings(key_rate=100_000_000)
        kmes = DevelopmentKMEs(state_dir=top / "kme", host="127.0.0.1", ports=(0, 0), link=link)
        await stack.enter_async_context(kmes)
        sink = await stack.enter_async_context(Sink())
        identities = make_identities(top / "identities")
        while sent < mails:
            directory = top / f"alice{sent}"
            policies = load(made, directory / "policies")
            site = site_of(directory, kmes, sink, identities, policies, ca)
            reference = Reference(policies.files, OWNERS, policies.site)
            async with relay_process(site) as relay:
                for _ in range(min(MAILS_EACH, mails - sent)):
                    facts = facts_of(made)
                    way = WAYS[sent % len(WAYS)]
                    if way == "submission" and "@[" in facts.sender:  # users may not send from an address literal
                        way = "smtp"
                    logins: dict[str, list[str | None]] = {"submission": [*LOGINS], "milter": [None, "", *LOGINS]}
                    facts = replace(facts, login=made.choice(logins.get(way, [None])))
                    want = reference.said(facts, facts.recipients[0]).outcome(facts, ABILITY)
                    got, reply = await one_mail(way, relay, trust, sink, facts)
                    sent += 1
                    counted[got] += 1
                    ways[way] += 1
                    if got != want:
                        wrong += 1
                        told = "\n".join(f"--- {name}\n{text}" for name, text in policies.files.items())
                        sys.stdout.write(
                            f"\n{facts}\n{policies.site}\nby {way} it is {got} ({reply}), and should be {want}\n{told}\n"
                        )
            shutil.rmtree(directory)
    seconds = time.monotonic() - began
    words = ", ".join(f"{number} {word}" for word, number in counted.most_common())
    by = ", ".join(f"{number} by {way}" for way, number in sorted(ways.items()))
    sys.stdout.write(
        f"seed {seed}: {sent} mails ({by}) in {seconds:.0f} s: {words}; {wrong} not as the documents say\n"
    )
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mails", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    chosen = parser.parse_args()
    sys.exit(bool(asyncio.run(main(chosen.mails, chosen.seed))))
