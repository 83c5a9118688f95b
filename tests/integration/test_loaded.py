"""All that a relay can need is loaded before it serves: what is loaded later may be of the release that replaced it.
Standard: the `open` audit event of Python (sys.addaudithook), which comes for each module and file that is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

import relay
from relay.audit.reading import records
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import submit

POLICIES = {
    "default.toml": 'levels = ["plaintext"]\nreason = "public"\n',
    "bob.example.toml": 'levels = ["aes"]\n[[when]]\nsubject_tag = "secret"\nlevels = ["otp"]\n'
    '[[when]]\nattachment_name = "*.doc"\nlevels = ["otp"]\n[[when]]\nsender = "*@sub.alice.example"\nlevels = ["otp", "aes"]\n',
    **{f"bob.example/{level}.toml": f'levels = ["{level}"]\n' for level in ("otp", "pqc")},
    "bob.example/both.toml": 'levels = ["rsa+aes"]\n',
}
NOTES_WHAT_IS_LOADED = """
import os, sys
def seen(event, arguments):
    if event == "open" and str(arguments[0]).startswith({package!r}) and os.path.exists({ready!r}):
        with open({names!r}, "a") as file:
            file.write(arguments[0] + "\\n")
sys.addaudithook(seen)
"""
RARE = (
    mails.plain("[secret] figures"),
    mails.plain("=?iso-2022-jp?B?GyRCNUJMKRsoQg==?= =?koi8-r?Q?=F4=C1=CA=CE=C1?="),
    b"Content-Type: message/rfc822\r\n\r\n" + mails.random_attachment(1000),
    b"Received: by x; now\r\n" * 100 + mails.plain(),
    mime.sealed_message(mails.plain(), b"not CMS"),
)


@asynccontextmanager
async def noting(site: Site) -> AsyncIterator[tuple[RelayProcess, Path]]:
    names, ready = site.directory / "loaded", site.directory / "ready"
    names.touch()
    with site.config_file.open("a") as file:
        file.write('\n[status]\nlisten = "127.0.0.1:0"\n')
    package = str(Path(relay.__file__).parent)
    before = NOTES_WHAT_IS_LOADED.format(names=str(names), ready=str(ready), package=package)
    async with relay_process(site, before=before) as serving:
        yield serving, names


async def test_no_file_of_the_release_is_read_while_it_serves(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities
) -> None:
    state = kmes.state_dir
    bob = make_site(
        tmp_path / "bob", "bob", kme_url=kmes.urls[1], incoming=sink.address, outgoing=sink.address, state=state,
        identities=identities,
    )  # fmt: skip
    async with noting(bob) as (opening, of_bob):
        hop = opening.addresses["incoming"]
        alice = make_site(
            tmp_path / "alice", "alice", kme_url=kmes.urls[0], outgoing=hop, policies=POLICIES, state=state,
            identities=identities,
        )  # fmt: skip
        async with noting(alice) as (sealing, of_alice):
            people = [f"{name}@bob.example" for name in ("otp", "aes", "pqc", "both")]
            replies = []
            for each in RARE:
                replies.append(await submit(sealing.addresses["outgoing"], each, recipients=people))
                await submit(sealing.addresses["outgoing"], each, sender="", recipients=["a@elsewhere.example"])
                await submit(hop, each)
            await submit(
                sealing.addresses["outgoing"], mails.eight_bit(), sender="änne@sub.alice.example",
                recipients=["bén@bob.example"], options=["SMTPUTF8", "BODY=8BITMIME"],
            )  # fmt: skip
            async with aiohttp.ClientSession() as session:
                for path in ("/", "/metrics", "/readyz", "/healthz", "/nothing"):
                    await session.get(f"http://{sealing.addresses['status']}{path}")
            alice.write_policies({"bob.example/pqc.toml": POLICIES["bob.example/otp.toml"]})
            await until(lambda: sum(each["event"] == "policies" for each in records(alice.config.audit_directory)) == 2)
            names = of_alice.read_text().split(), of_bob.read_text().split()
    assert [reply.code for reply in replies][:2] == [250] * 2
    assert names == ([], [])


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)
