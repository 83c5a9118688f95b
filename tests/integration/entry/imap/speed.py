"""How long 1,000 sealed messages of 20 KB take to be opened in a mailbox, against copying them with FETCH and APPEND.
Standard: real Dovecot and development KMEs on this machine; run as `python -m tests.integration.entry.imap.speed [NUMBER]`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path

import structlog

from relay import app
from relay.kme import DevelopmentKMEs, LinkSettings
from tests.integration.entry.imap.conftest import NOWHERE, Alice, bob_site, imap_table, opened, original, visit
from tests.testlib.dovecot import Dovecot, dovecot
from tests.testlib.sites import make_site

AIM = 3.0
OCTETS = 20_000


def copy(server: Dovecot, number: int) -> float:
    """Seconds for a FETCH and an APPEND of each message, by the standard library's client."""
    begin = time.monotonic()
    with server.client("copier") as client:
        for uid in range(1, number + 1):
            _, found = client.uid("FETCH", str(uid), "(FLAGS INTERNALDATE BODY.PEEK[])")
            assert isinstance(found[0], tuple)
            client.append("INBOX", "", "", found[0][1])
    return time.monotonic() - begin


async def measure(number: int, directory: Path) -> int:
    link = LinkSettings(key_rate=1_000_000)
    async with (
        DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link) as kmes,
        dovecot(users=("ben", "copier")) as server,
    ):
        site = make_site(directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=NOWHERE)
        line = "x" * 76 + "\r\n"
        async with app.parts(site.config) as parts:
            alice = Alice(parts)
            originals = [original(f"{each:05}", line * (OCTETS // len(line))) for each in range(number)]
            sealed = [await alice.seal(message) for message in originals]
        for user in ("ben", "copier"):
            server.put(sealed, user)
        copying = await asyncio.to_thread(copy, server, number)
        bob = bob_site(directory / "bob", kmes, imap_table(server.tls, server.ca))
        begin = time.monotonic()
        [visited] = await visit(bob)
        opening = time.monotonic() - begin
        assert (visited.opened, opened(server.messages())) == (number, originals)
    print(f"{number} messages of {len(sealed[0])} octets sealed: copied in {copying:.2f} s, opened in {opening:.2f} s")  # noqa: T201
    print(f"{opening / copying:.2f} times as long; the aim is {AIM:g} times at most")  # noqa: T201
    return 0 if opening <= AIM * copying else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.integration.entry.imap.speed", description=__doc__)
    parser.add_argument("number", nargs="?", type=int, default=1000, help="messages (%(default)s)")
    number = parser.parse_args().number
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as name:
        sys.exit(asyncio.run(measure(number, Path(name))))
