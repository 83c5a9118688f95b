"""A sealed message that reaches the mailbox is there in its original form within a second, whatever the mailbox holds.
Standard: real Dovecot over TLS; messages arrive by LMTP.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from relay.config import parse_address
from relay.kme import DevelopmentKMEs
from relay.process import assembly
from tests.integration.entry.imap.conftest import NOWHERE, Alice, bob_site, imap_table, opened, original, visit
from tests.testlib import mails
from tests.testlib.dovecot import Dovecot, dovecot, requires_dovecot
from tests.testlib.identities import Identities
from tests.testlib.imap_wire import IMAPWire
from tests.testlib.relay_command import run
from tests.testlib.sites import Site, make_site, serving
from tests.testlib.wire import Wire

pytestmark = requires_dovecot


async def test_a_sealed_message_is_opened_when_it_arrives_long_before_the_folder_is_polled(
    alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    sealed = await alice.seal(original("first"))
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(IMAPWire(server))
        bob = bob_site(tmp_path / "bob", kmes, imap_table(wire.address, server.ca, "poll = 3600"))
        await stack.enter_async_context(serving(bob))
        await wire.passed("IDLE", 1)
        await asyncio.to_thread(server.deliver, sealed)
        [put_away] = await server.until(1, "Sealed")
        [found] = server.messages()
    assert opened([found]) == [original("first")]
    assert put_away.endswith(sealed)


@pytest.mark.parametrize("table", ["idle = false\npoll = 0.1", 'tls = "starttls"'], ids=["by polling", "by STARTTLS"])
async def test_it_is_opened_also(
    table: str, alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    address = server.starttls if "starttls" in table else server.tls
    bob = bob_site(tmp_path / "bob", kmes, imap_table(address, server.ca, table))
    async with serving(bob):
        for subject in ("one", "two"):
            await asyncio.to_thread(server.deliver, await alice.seal(original(subject)))
            await server.until(2 if subject == "two" else 1, "Sealed")
    assert opened(server.messages()) == [original("one"), original("two")]


async def test_a_large_message_is_opened_octet_for_octet(alice: Alice, bob: Site, server: Dovecot) -> None:
    large = mails.random_attachment(6_000_000)
    small = original("beside it")
    await asyncio.to_thread(server.deliver, await alice.seal(large), await alice.seal(small))
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened, visited.failure) == (2, 0, "")
    assert opened(server.messages()) == sorted([large, small])


async def test_flags_and_date_go_over_to_the_original(alice: Alice, bob: Site, server: Dovecot) -> None:
    sealed = await alice.seal(original("one"))
    with server.client() as client:
        client.append("INBOX", r"(\Flagged \Seen $Forwarded)", '"01-Feb-2003 04:05:06 +0000"', sealed)
    await visit(bob)
    with server.client() as client:
        described = str(client.fetch("1", "(FLAGS INTERNALDATE)"))
    assert 'INTERNALDATE "01-Feb-2003 04:05:06 +0000"' in described
    for flag in ("Flagged", "Seen", "$Forwarded"):
        assert flag in described
    assert "QuMail" not in described


async def test_everything_else_is_left_as_it_is(alice: Alice, bob: Site, server: Dovecot) -> None:
    """Ordinary mail, mail that people sealed for each other, and mail that only says that it is sealed."""
    others = [
        mails.plain(),
        mails.plain().replace(
            b"\r\n\r\n", b"\r\nContent-Type: application/pkcs7-mime; smime-type=enveloped-data\r\n\r\n"
        ),
        mails.plain()
        .replace(b"ann@alice", b"eve@eve")
        .replace(b"\r\n\r\n", b"\r\nContent-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\n\r\n"),
    ]
    with server.client() as client:
        for message in others:
            client.append("INBOX", "", "", message)
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened, visited.failure) == (0, 0, "")
    assert server.messages() == others


@pytest.mark.parametrize("after", ["flag", "delete"])
async def test_the_sealed_message_may_stay_flagged_or_be_deleted(
    after: str, alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    bob = bob_site(tmp_path / "bob", kmes, imap_table(server.tls, server.ca, f'after = "{after}"'))
    await asyncio.to_thread(server.deliver, await alice.seal(original("one")))
    for _ in range(2):
        await visit(bob)
    with server.client() as client:
        _, [flagged] = client.search(None, "KEYWORD", "$QuMailOpened")
    found = server.messages()
    assert opened(found) == [original("one")]
    assert (len(found), flagged) == ((2, b"1") if after == "flag" else (1, b""))


async def test_folders_of_any_name_are_watched_each(
    alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    names = {"INBOX": "INBOX", "Entwürfe & mehr.台北": '"Entw&APw-rfe &- mehr.&U,BTFw-"', 'a "b\\ c': r'"a \"b\\ c"'}
    folders = json.dumps(list(names), ensure_ascii=False)
    bob = bob_site(tmp_path / "bob", kmes, imap_table(server.tls, server.ca, f"folders = {folders}"))
    for name, wire_name in names.items():
        with server.client() as client:
            client.create(wire_name)
            client.append(wire_name, "", "", await alice.seal(original(f"in {name[0]}")))
    visits = await visit(bob)
    assert [(each.folder, each.opened, each.failure) for each in visits] == [(name, 1, "") for name in names]
    for name, wire_name in names.items():
        assert opened(server.messages(wire_name)) == [original(f"in {name[0]}")]


async def test_where_all_folders_lie_under_inbox_the_sealed_message_goes_there(
    alice: Alice, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    """RFC 2342: the settings say "Sealed", the server has INBOX.Sealed; a folder may be written either way."""
    async with dovecot(more="namespace inbox {\n  prefix = INBOX.\n  separator = .\n}\n") as server:
        folders = 'folders = ["INBOX", "Work", "INBOX.Private"]'
        bob = bob_site(tmp_path / "bob", kmes, imap_table(server.tls, server.ca, folders))
        for name in ("INBOX", "INBOX.Work", "INBOX.Private"):
            with server.client(folder=name) as client:
                client.append(name, "", "", await alice.seal(original(name)))
        visits = await visit(bob)
        assert [(each.opened, each.failure) for each in visits] == [(1, "")] * 3
        assert opened(server.messages("INBOX.Work")) == [original("INBOX.Work")]
        assert len(server.messages("INBOX.Sealed")) == 3
        text = bob.config_file.read_text().replace('"Work"', '"INBOX.Sealed"')
        bob.config_file.write_text(text)
        assert "sealed messages must leave those" in [each.failure for each in await visit(bob)][1]


async def test_a_folder_that_was_made_anew_is_followed(
    alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    """Its UIDVALIDITY is another one, and its UIDs begin at 1 again."""
    bob = bob_site(tmp_path / "bob", kmes, imap_table(server.tls, server.ca, 'folders = ["Work"]\npoll = 0.2'))
    sealed = [await alice.seal(original(subject)) for subject in ("one", "two", "three")]
    with server.client(folder="Work") as client:
        client.append("Work", "", "", sealed[0])
        client.append("Work", "", "", sealed[1])
    async with serving(bob):
        await server.until(2, "Sealed")
        with server.client() as client:
            client.delete("Work")
            client.create("Work")
            client.append("Work", "", "", sealed[2])
        await server.until(3, "Sealed")
    assert opened(server.messages("Work")) == [original("three")]


async def test_a_first_run_over_thousands_of_messages_opens_all_that_are_sealed(
    alice: Alice, bob: Site, server: Dovecot
) -> None:
    messages = [original(f"plain {number}") for number in range(2000)]
    for number in range(300):
        messages[number * 6 + 5] = await alice.seal(original(f"sealed {number:03}"))
    await asyncio.to_thread(server.put, messages)
    status, said, out = await run("imap", "once", "--config", bob.config_file, "--json")
    assert (status, said) == (0, "")
    [visited] = json.loads(out)
    assert (visited["opened"], visited["unopened"]) == (300, 0)
    found = server.messages()
    assert len(found) == 2000
    assert opened(found) == [original(f"sealed {number:03}") for number in range(300)]
    assert len(server.messages("Sealed")) == 300
    [again] = await visit(bob)
    assert (again.opened, again.unopened, again.failure) == (0, 0, "")


async def test_what_is_changed_stays_sealed_and_flagged(alice: Alice, bob: Site, server: Dovecot) -> None:
    sealed = await alice.seal(original("one"))
    middle = len(sealed) - 100
    changed = sealed[:middle] + (b"A" if sealed[middle : middle + 1] != b"A" else b"B") + sealed[middle + 1 :]
    good = await alice.seal(original("two"))
    await asyncio.to_thread(server.deliver, changed, good)
    status, said, out = await run("imap", "once", "--config", bob.config_file)
    assert status == 1
    assert out.startswith(b"ben INBOX: 1 opened, 1 left sealed")
    assert "BadTag" in said
    with server.client() as client:
        _, [flagged] = client.search(None, "KEYWORD", "$QuMailUnopened")
    found = server.messages()
    assert (len(found), flagged) == (2, b"1")
    assert found[0].endswith(changed)
    assert opened(found) == [original("two")]


async def test_an_original_with_a_nul_which_imap_cannot_carry_stays_sealed_and_flagged(
    alice: Alice, bob: Site, server: Dovecot
) -> None:
    sealed = await alice.seal(original("one", "A body with a NUL \0 in it\r\n"))
    await asyncio.to_thread(server.deliver, sealed)
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened) == (0, 1)
    with server.client() as client:
        assert client.search(None, "KEYWORD", "$QuMailUnopened")[1] == [b"1"]
    [found] = server.messages()
    assert found.endswith(sealed)


@pytest.mark.in_process
async def test_a_message_whose_key_does_not_come_is_opened_when_it_does(
    alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    url = kmes.urls[1]
    host_port = url.removeprefix("https://").split("/")[0]
    async with Wire(parse_address(host_port)) as to_kme:
        bob = bob_site(
            tmp_path / "bob", kmes, imap_table(server.tls, server.ca), url.replace(host_port, str(to_kme.address))
        )
        async with serving(bob):
            await to_kme.cut()
            await asyncio.to_thread(server.deliver, await alice.seal(original("one")))
            await server.flagged("$QuMailUnopened")
            assert opened(server.messages()) == []
            await to_kme.mend()
            await server.until(1, "Sealed")
        with server.client() as client:
            assert "QuMail" not in str(client.fetch("1:*", "(FLAGS)"))
        assert opened(server.messages()) == [original("one")]


@pytest.mark.in_process
async def test_when_the_quota_is_full_the_sealed_message_stays(
    alice: Alice, tmp_path: Path, kmes: DevelopmentKMEs, capsys: pytest.CaptureFixture[str]
) -> None:
    quota = 'mail_plugins = quota\nquota "all" {\n  driver = count\n  storage_size = 60K\n}\n'
    async with dovecot(more=quota) as server:
        bob = bob_site(tmp_path / "bob", kmes, imap_table(server.tls, server.ca))
        sealed = await alice.seal(original("one", "word " * 4000 + "\r\n"))
        await asyncio.to_thread(server.deliver, original("fills it", "word " * 4000 + "\r\n"), sealed)
        async with serving(bob):
            await server.flagged("$QuMailUnopened")
            assert "[OVERQUOTA]" in capsys.readouterr().out
            found = server.messages()
            assert opened(found) == []
            assert found[1].endswith(sealed)
            with server.client() as client:
                client.store("1", "+FLAGS", r"(\Deleted)")
                client.expunge()
            await server.until(1, "Sealed")
        assert opened(server.messages()) == [original("one", "word " * 4000 + "\r\n")]


async def test_a_message_over_the_limit_is_not_fetched(
    alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    bob = bob_site(tmp_path / "bob", kmes, imap_table(server.tls, server.ca, 'max_message_size = "50 KiB"'))
    sealed = [await alice.seal(mails.random_attachment(100_000)), await alice.seal(original("one"))]
    await asyncio.to_thread(server.deliver, *sealed)
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened) == (1, 1)
    assert server.messages()[0].endswith(sealed[0])


async def test_whom_a_message_is_from_is_sealed_and_what_return_path_says_does_not_matter(
    server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities
) -> None:
    pqc = {"default.toml": 'levels = ["pqc+aes", "pqc"]\n'}
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=NOWHERE, policies=pqc,
        identities=identities,
    )  # fmt: skip
    async with assembly.parts(site.config) as parts:
        sealed = [await Alice(parts).seal(original(subject)) for subject in ("one", "two", "three")]
    returned = [b"Return-Path: <ann@alice.example>\r\n", b"Return-Path: <eve@eve.example>\r\n", b""]
    with server.client() as client:
        for path, message in zip(returned, sealed, strict=True):
            client.append("INBOX", "", "", path + message)
    bob = bob_site(tmp_path / "bob", kmes, imap_table(server.tls, server.ca), identities=identities)
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened) == (3, 0)
    found = sorted(each.partition(b"\r\n")[2] for each in server.messages())
    assert found == sorted(map(original, ("one", "two", "three")))


@pytest.mark.parametrize("unprotected", ["refuse", "mark"])
async def test_what_arrived_with_less_than_policy_requires_stays_or_is_marked(
    unprotected: str, alice: Alice, bob: Site, server: Dovecot
) -> None:
    bob.write_policies({"default.toml": f'levels = ["aes"]\nrequire = "otp"\nunprotected = "{unprotected}"\n'})
    sealed = await alice.seal(original("one"))
    await asyncio.to_thread(server.deliver, sealed)
    [visited] = await visit(bob)
    [found] = server.messages()
    if unprotected == "refuse":
        assert (visited.opened, visited.unopened) == (0, 1)
        assert found.endswith(sealed)
    else:
        assert found.startswith(b"X-QuMail-Protection: aes; peer=alice; author=peer; required=otp; sealed=")
        assert found.endswith(original("one"))


async def test_the_sample_in_deploy_watches_a_mailbox(
    alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    """Only host, port, certificates, user and the password's place are this machine's; the rest is as it stands."""
    sample = (Path(__file__).parents[4] / "deploy" / "imap" / "mailboxes.toml").read_text()
    here = {
        '"imap.provider.example"': f'"localhost"\nport = {server.tls.port}\nca = "{server.ca}"',
        '"ben@bob.example"': '"ben"\naddresses = ["ben@bob.example"]',
        "/etc/qumail-relay/imap-ben.password": "ben.password",
    }
    for there, instead in here.items():
        assert there in sample
        sample = sample.replace(there, instead)
    bob = bob_site(tmp_path / "bob", kmes, sample)
    await asyncio.to_thread(server.deliver, await alice.seal(original("one")))
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened, visited.failure) == (1, 0, "")
    assert opened(server.messages()) == [original("one")]
    assert len(server.messages("Sealed")) == 1


async def test_once_says_which_accounts_there_are(bob: Site) -> None:
    status, said, out = await run("imap", "once", "--config", bob.config_file, "--account", "bea")
    assert (status, out) == (1, b"")
    assert "there is no [imap.bea]; known: ben" in said
