"""Behind a real Postfix, beside a real OpenDKIM in both orders, and with the files of deploy/dkim as they stand.
Standard: deploy/dkim/README.md; OpenDKIM, which shares nothing with us, signs and verifies.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from relay.config import TCPAddress, load_config
from relay.kme import DevelopmentKMEs
from tests.integration.dkim.test_journey import add_dkim
from tests.testlib import mails, postfix
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import submit
from tests.testlib.zone import Zone
from tests.unit.dkim.conftest import Keys, dkimpy_says, pem
from tests.unit.dkim.test_signing import opendkim_says

DEPLOY = Path(__file__).parents[3] / "deploy" / "dkim"

pytestmark = requires_postfix


@asynccontextmanager
async def opendkim(directory: Path, key: Path, selector: str) -> AsyncIterator[TCPAddress]:
    """OpenDKIM with deploy/dkim/opendkim.conf, but for key, selector and port."""
    [address] = free_addresses(1)
    text = (DEPLOY / "opendkim.conf").read_text()
    for old, new in (
        ("/etc/dkimkeys/alice.example.mail2026.pem", str(key)),
        ("mail2026", selector),
        ("8891", str(address.port)),
    ):
        assert old in text
        text = text.replace(old, new)
    (directory / "opendkim.conf").write_text(text + "RequireSafeKeys no\n")
    process = await asyncio.create_subprocess_exec("opendkim", "-f", "-x", str(directory / "opendkim.conf"))
    try:
        async with asyncio.timeout(30):
            while process.returncode is None:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection(*address)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        assert process.returncode is None
        yield address
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@pytest.mark.parametrize(
    "who", ["OpenDKIM signs originals, the relay the sealed mail", "OpenDKIM signs the sealed mail"]
)
async def test_beside_opendkim_both_signatures_verify_where_they_should(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink, zone: Zone, keys: Keys, who: str
) -> None:
    relay_signs = who.startswith("OpenDKIM signs originals")
    smtp, again, opened_at = free_addresses(3)
    alice = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=again, incoming=opened_at,
        settings='milter = "127.0.0.1:0"',
    )  # fmt: skip
    add_dkim(alice, zone, {"alice.example e": pem(keys.ed25519)} if relay_signs else {})
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)
    add_dkim(bob, zone, {})
    signing = tmp_path / "mail.pem"
    signing.touch(mode=0o600)
    signing.write_bytes(pem(keys.rsa))
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(serving(alice))
        incoming = (await stack.enter_async_context(serving(bob)))["incoming"]
        signer = await stack.enter_async_context(opendkim(tmp_path, signing, keys.rsa.selector))
        order = [relay["incoming_milter"], relay["outgoing_milter"]]
        order.insert(1 if relay_signs else 2, signer)
        milters = ", ".join(f"inet:{address}" for address in order)
        server = await stack.enter_async_context(
            postfix.running(
                smtp=smtp,
                fragments=("milter",),
                ports={
                    15028: relay["outgoing_milter"], 15038: relay["incoming_milter"], 15026: again, 15036: opened_at,
                },
                settings={
                    "myhostname": "mail.alice.example",
                    "relay_domains": "alice.example",
                    "default_transport": f"smtp:[{wire.address.host}]:{wire.address.port}",
                },
                changes=f'postconf -e "smtpd_milters = {milters}"',
            )
        )  # fmt: skip
        assert (await server.submit(mails.plain(), recipients=["ben@bob.example"])).code == 250
        [got] = await wire.messages(1)
        outer = keys.ed25519 if relay_signs else keys.rsa
        assert f"s={outer.selector}, d=alice.example" in opendkim_says(tmp_path, keys, got.message)
        assert (await submit(incoming, got.message)).code == 250
    opened = sink.got[-1].message
    assert f"dkim=pass header.d=alice.example header.s={outer.selector} ".encode() in opened
    assert opened.endswith(mails.plain())
    assert (b"DKIM-Signature:" in opened) == relay_signs
    if relay_signs:
        assert dkimpy_says(opened, zone.texts)
        assert f"s={keys.rsa.selector}, d=alice.example" in opendkim_says(tmp_path, keys, opened)


async def test_the_tables_to_add_sign_and_verify_as_they_stand(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink, zone: Zone, keys: Keys
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        incoming=sink.address,
    )  # fmt: skip
    text = (DEPLOY / "dkim.toml").read_text().replace("/var/lib/qumail-relay/dkim", str(tmp_path))
    site.config_file.write_text(f"{site.config_file.read_text()}\n{text}")
    tables = load_config(site.config_file).dkim
    assert tables is not None
    for table, key in zip(tables.keys, (keys.rsa, keys.ed25519), strict=True):
        table.key.touch(mode=0o600)
        table.key.write_bytes(pem(key))
        zone.texts[f"{table.selector}._domainkey.{table.domain}"] = key.record.encode()
    async with serving(site) as relay:
        assert (await submit(relay["outgoing"], mails.plain())).code == 250
    [got] = wire.got
    assert re.findall(rb" s=(\w+);", got.message) == [b"relay2026", b"relay2026e"]
    assert [dkimpy_says(got.message, zone.texts, index) for index in (0, 1)] == [True, True]
