"""Servers that answer nonsense, too much, or nothing: the connection ends, memory stays bounded, and nothing is lost.
Standard: a server that remembers what it was told; secrets go over verified TLS only.
"""

from __future__ import annotations

import asyncio
import base64
import re
import sys
from pathlib import Path

import pytest
import trustme

from relay.kme import DevelopmentKMEs
from relay.process import app
from tests.integration.entry.imap.conftest import Alice, bob_at, opened, original, visit
from tests.testlib import mails
from tests.testlib.dovecot import PASSWORD
from tests.testlib.imap_double import CAPABILITIES, Conversation, IMAPDouble
from tests.testlib.sites import Site, serving


@pytest.fixture
def bob(provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs) -> Site:
    return bob_at(provider, tmp_path, kmes)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the time until the next connection had always just passed."""
    monkeypatch.setattr("relay.entry.imap.login.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("relay.entry.imap.login.LONGEST_PAUSE_S", 0.05)


SPIN_S = 2.0
STORM = b"* 1 EXISTS\r\n" * 2_000_000
NONSENSE: dict[str, tuple[str, bytes | None]] = {
    "a literal larger than all that was asked for": ("UID FETCH", b"* 1 FETCH (UID 1 BODY[] {4000000000}\r\n"),
    "a literal with fewer octets than it says": ("UID FETCH", b"* 1 FETCH (UID 1 BODY[] {50}\r\nshort)\r\nTAG OK done\r\n"),
    "a literal with more octets than it says": ("UID FETCH", b"* 1 FETCH (UID 1 BODY[] {5}\r\nmuch longer)\r\nTAG OK done\r\n"),
    "lists that do not end": ("UID FETCH", b"* 1 FETCH (UID 1 FLAGS ((((((\r\nTAG OK done\r\n"),
    "lists that end twice": ("UID FETCH", b"* 1 FETCH (UID 1)) FLAGS ()\r\nTAG OK done\r\n"),
    "a UID that is no number": ("UID FETCH", b"* 1 FETCH (UID many FLAGS ())\r\nTAG OK done\r\n"),
    "a UID of many digits": ("UID FETCH", b"* 1 FETCH (UID %s FLAGS ())\r\nTAG OK done\r\n" % (b"9" * 30_000)),
    "a search result of words": ("UID SEARCH", b"* SEARCH one two\r\nTAG OK done\r\n"),
    "octets that are no text": ("UID SEARCH", b"\xff\xfe\x00\r\n"),
    "an answer to somebody else": ("UID SEARCH", b"XYZ1 OK done\r\n"),
    "a continuation that nobody wants": ("UID SEARCH", b"+ go on\r\n"),
    "a storm of untagged responses": ("UID SEARCH", STORM),
    "a storm while it is idle": ("IDLE", b"+ idling\r\n" + STORM),
    "a line without an end": ("UID SEARCH", b"* SEARCH " + b"1 " * 6_000_000),
    "no UIDVALIDITY": ("SELECT", b"* 0 EXISTS\r\nTAG OK done\r\n"),
    "a folder that may only be read": ("SELECT", b"* OK [UIDVALIDITY 7] x\r\nTAG OK [READ-ONLY] done\r\n"),
    "BYE in the middle": ("UID FETCH", b"* 1 FETCH (UID 1 FLA"),
    "the end of the connection": ("APPEND", None),
    "nothing": ("UID FETCH", b""),
    "nothing to IDLE": ("IDLE", b""),
    "a refusal to append": ("APPEND", b"TAG NO [OVERQUOTA] full\r\n"),
    "a refusal to move": ("UID MOVE", b"TAG NO [CANNOT] no\r\n"),
}  # fmt: skip


@pytest.mark.promise("A server that answers anything at all")
@pytest.mark.in_process
@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("what", NONSENSE)
async def test_a_server_that_answers(what: str, alice: Alice, provider: IMAPDouble, bob: Site) -> None:
    """Each is answered that way twice, and then as usual: the message is opened, once."""
    command, answer = NONSENSE[what]
    provider.instead[command] = [answer, answer]
    sealed = await alice.seal(original("one"))
    provider.put(sealed)
    async with serving(bob):
        await provider.until(lambda: provider.messages("Sealed") == [sealed])
        await provider.until(lambda: not provider.instead[command])
    assert opened(provider.messages()) == [original("one")]
    assert len(provider.messages()) == 1
    assert provider.messages("Sealed") == [sealed]


@pytest.mark.parametrize("code", ["UIDVALIDITY", "UIDNEXT"])
@pytest.mark.parametrize("number", ["9" * 5000, "0", "-1", "1e9", "4294967296"])
async def test_a_number_that_is_none_of_imaps_is_a_failure_of_the_mailbox(
    code: str, number: str, alice: Alice, provider: IMAPDouble, bob: Site
) -> None:
    """RFC 3501, 9: 32 bits, not zero. UIDNEXT only saves work, so that any will do."""
    numbers = {"UIDVALIDITY": "3", "UIDNEXT": "2"} | {code: number}
    said = "".join(f"* OK [{name} {value}] said\r\n" for name, value in numbers.items())
    provider.instead["SELECT"] = [f"* 1 EXISTS\r\n{said}TAG OK [READ-WRITE] selected\r\n".encode()] * 2
    provider.put(await alice.seal(original("one")))
    [visited] = await visit(bob)
    if code == "UIDVALIDITY":
        assert "has no UIDVALIDITY" in visited.failure
        assert len(visited.failure) < 500
    else:
        assert (visited.failure, visited.opened) == ("", 1)


async def test_what_arrives_between_the_first_questions_about_a_folder_is_opened(
    alice: Alice, provider: IMAPDouble, bob: Site
) -> None:
    """The folder was empty when it was selected, and nothing in it sealed; then a sealed and a marked message came."""
    provider.instead["SELECT"] = [
        b"* 0 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [UIDNEXT 1] x\r\nTAG OK [READ-WRITE] done\r\n"
    ]
    provider.instead["UID SEARCH"] = [b"* SEARCH\r\nTAG OK done\r\n"]
    provider.put(await alice.seal(original("one")))
    provider.put(b"X-QuMail-Protection: otp; peer=alice\r\n" + mails.plain())
    [visited] = await visit(bob)
    assert (visited.failure, visited.opened) == ("", 1)


@pytest.mark.parametrize("news", [b"", b"* 1 EXISTS\r\n"], ids=["with nothing", "with news that are none"])
async def test_a_server_that_ends_IDLE_at_once_is_asked_less_and_less_often_and_its_mail_is_opened(
    news: bytes, alice: Alice, provider: IMAPDouble, bob: Site
) -> None:
    async with serving(bob):
        provider.instead["IDLE"] = [b"+ idling\r\n%bTAG OK done\r\n" % news] * 10_000
        await provider.until(lambda: "IDLE" in provider.told)
        sealed = await alice.seal(original("one"))
        provider.put(sealed)
        await provider.until(lambda: provider.messages("Sealed") == [sealed])
        await asyncio.sleep(SPIN_S)  # what is measured
        asked = sum(line == "IDLE" for line in provider.told)
    assert asked <= 10


async def test_a_server_that_refuses_to_be_idle_is_polled(
    alice: Alice, provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    provider.instead["IDLE"] = [b"TAG NO not now\r\n"]
    async with app.running(bob_at(provider, tmp_path, kmes, "poll = 0.05").config):
        await provider.until(lambda: not provider.instead["IDLE"])
        provider.put(await alice.seal(original("one")))
        await provider.until(lambda: len(provider.messages("Sealed")) == 1)
    assert opened(provider.messages()) == [original("one")]
    assert sum(line == "IDLE" for line in provider.told) == 1


@pytest.mark.promise("A server that answers anything at all")
@pytest.mark.usefixtures("no_pauses")
async def test_one_message_over_which_the_connection_always_breaks_does_not_stop_the_others(
    alice: Alice, provider: IMAPDouble, bob: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Conversation.uid_fetch

    async def breaks(self: Conversation, rest: str) -> str:
        if "BODY.PEEK[]" in rest and any(each.uid == 2 for _, each in self.chosen(rest)):
            raise ConnectionError
        return await real(self, rest)

    monkeypatch.setattr(Conversation, "uid_fetch", breaks)
    for number in range(4):
        provider.put(await alice.seal(original(str(number))))
    async with serving(bob):
        await provider.until(lambda: len(provider.messages("Sealed")) == 3)
    assert opened(provider.messages()) == [original("0"), original("2"), original("3")]
    assert provider.folders["INBOX"][0].uid == 2


async def test_a_double_that_may_not_be_deleted_keeps_no_sealed_message_from_being_put_away(
    alice: Alice, provider: IMAPDouble, bob: Site
) -> None:
    """Two watchers at once have made it, of which one was cut off before it could put the sealed message away."""
    sealed, other = await alice.seal(original("one")), await alice.seal(original("two"))
    for message in (sealed, other):
        provider.put(message)
    provider.instead["UID MOVE"] = [b"TAG NO [INUSE] later\r\n"]
    await visit(bob)
    [double] = [each for each in provider.messages() if each.endswith(original("one"))]
    provider.put(double)
    provider.instead["UID STORE"] = [b"TAG NO [NOPERM] no\r\n"] * 10
    [visited] = await visit(bob)
    assert (visited.opened, visited.failure) == (2, "")
    assert provider.messages("Sealed") == [sealed, other]
    assert opened(provider.messages()) == [original("one"), original("one"), original("two")]


async def test_without_move_it_is_copied_and_deleted(
    alice: Alice, authority: trustme.CA, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    sealed = await alice.seal(original("one"))
    async with IMAPDouble(authority, capabilities="IMAP4rev1 UIDPLUS") as provider:
        provider.put(sealed)
        provider.put(original("deleted by the user"), flags="\\Deleted")
        [visited] = await visit(bob_at(provider, tmp_path, kmes))
        assert (visited.opened, visited.failure) == (1, "")
        assert provider.messages("Sealed") == [sealed]
        assert len(provider.messages()) == 2, "only the sealed message was expunged"
        assert provider.told[1] == f'LOGIN "ben" "{PASSWORD}"'.replace('tr"ick\\y', 'tr\\"ick\\\\y')


async def test_where_no_keyword_can_be_kept_none_is_set(
    alice: Alice, authority: trustme.CA, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    sealed = await alice.seal(original("one"))
    async with IMAPDouble(authority, keywords="") as provider:
        provider.put(sealed, flags="\\Seen $Own")
        provider.put(sealed[:-200] + b"\r\n")
        [visited] = await visit(bob_at(provider, tmp_path, kmes))
        assert (visited.opened, visited.unopened) == (1, 1)
        assert not any(line.startswith("UID STORE") for line in provider.told)
        [append] = [line for line in provider.told if line.startswith("APPEND")]
        assert append.startswith('APPEND "INBOX" (\\Seen) "25-Nov-2026 10:00:00 +0000" {')


@pytest.mark.in_process
async def test_a_long_run_says_in_the_log_how_far_it_is(
    alice: Alice, provider: IMAPDouble, bob: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("relay.entry.imap.watch.PROGRESS_S", 0.0)
    for number in range(70):
        provider.put(await alice.seal(original(str(number))))
    async with serving(bob):
        await provider.until(lambda: len(provider.messages("Sealed")) == 70)
    [first, *_] = [line for line in capsys.readouterr().out.splitlines() if "imap_progress" in line]
    assert re.search(r"left=\d+ opened=1\b", first)


# Who it talks to, and what it says there


@pytest.mark.promise("No password, token or mail goes to a server other than the one named")
async def test_nothing_is_said_to_a_server_whose_certificate_is_another_ones(
    provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    bob = bob_at(provider, tmp_path, kmes)
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    [visited] = await visit(bob)
    assert "certificate verify failed" in visited.failure
    assert provider.told == []


@pytest.mark.promise("No password, token or mail goes to a server other than the one named")
async def test_nothing_is_said_to_a_server_of_another_name(
    provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    bob = bob_at(provider, tmp_path, kmes)
    bob.config_file.write_text(bob.config_file.read_text().replace('host = "localhost"', 'host = "127.0.0.1"'))
    [visited] = await visit(bob)
    assert "certificate verify failed" in visited.failure
    assert provider.told == []


@pytest.mark.parametrize(
    "answer",
    [b"TAG NO not here\r\n", b"TAG BAD what\r\n", b"TAG OK begin\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n", b"* PREAUTH\r\n"],
    ids=["refused", "unknown", "followed by words in clear", "answered by something else"],
)  # fmt: skip
async def test_where_starttls_fails_no_password_is_said(
    answer: bytes, authority: trustme.CA, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    async with IMAPDouble(authority, starttls=True, instead={"STARTTLS": [answer]}) as provider:
        [visited] = await visit(bob_at(provider, tmp_path, kmes, 'tls = "starttls"'))
        assert visited.failure
        # Where the words in clear come a moment later, the handshake has begun, and its octets can look like lines.
        said, *handshake = provider.clear
        assert said.split()[1] == "STARTTLS"
        assert not any(word in line.upper() for line in handshake for word in ("LOGIN", "AUTHENTICATE", "CAPABILITY"))


@pytest.mark.parametrize(
    "greeting", [b"* PREAUTH hello\r\n", b"* BYE too many\r\n", b"220 mail ESMTP\r\n", b"* OK\xff"]
)
async def test_a_greeting_that_is_none_ends_it(
    greeting: bytes, authority: trustme.CA, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    async with IMAPDouble(authority, greeting=greeting) as provider:
        [visited] = await visit(bob_at(provider, tmp_path, kmes))
        assert visited.failure.startswith(f"localhost:{provider.address.port}: ")
        assert provider.told == []


async def test_plain_goes_in_two_steps_where_it_must(
    alice: Alice, authority: trustme.CA, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    async with IMAPDouble(authority, capabilities=CAPABILITIES.replace(" SASL-IR", "")) as provider:
        [visited] = await visit(bob_at(provider, tmp_path, kmes))
        assert visited.failure == ""
        assert base64.b64decode(provider.told[1]) == f"\0ben\0{PASSWORD}".encode()


def with_token(site: Site, *command: str) -> Site:
    words = ", ".join(f"'{word}'" for word in command)
    text = site.config_file.read_text().replace('password_file = "ben.password"', f"token_command = [{words}]")
    site.config_file.write_text(text)
    return site


async def test_a_token_comes_from_a_command_and_goes_into_xoauth2(provider: IMAPDouble, bob: Site) -> None:
    with_token(bob, sys.executable, "-c", 'print("token $(HOME) 1")')
    [visited] = await visit(bob)
    assert visited.failure == ""
    said = next(line for line in provider.told if line.startswith("AUTHENTICATE"))
    assert base64.b64decode(said.split()[2]) == b"user=ben\1auth=Bearer token $(HOME) 1\1\1"


async def test_a_token_that_is_refused_with_a_reason_ends_it(provider: IMAPDouble, bob: Site) -> None:
    provider.instead["AUTHENTICATE"] = [b"+ eyJzdGF0dXMiOiI0MDAifQ==\r\nTAG NO [AUTHENTICATIONFAILED] expired\r\n"]
    with_token(bob, sys.executable, "-c", 'print("secret-token")')
    [visited] = await visit(bob)
    assert "AUTHENTICATIONFAILED" in visited.failure
    assert "secret-token" not in visited.failure


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("raise SystemExit(3)", "ended with status 3"),
        ("print()", "is empty, too long, or has control characters"),
        ("print('a' * 100_000)", "is empty, too long, or has control characters"),
        ("print('a\\x01b')", "is empty, too long, or has control characters"),
        ("import time; time.sleep(60)", "has not ended within"),
    ],
)  # fmt: skip
async def test_a_token_command_that_fails_is_named(
    program: str, expected: str, provider: IMAPDouble, bob: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.entry.imap.login.TOKEN_TIMEOUT_S", 1.0)
    with_token(bob, sys.executable, "-c", program.replace("'", '"'))
    [visited] = await visit(bob)
    assert expected in visited.failure
    assert provider.told == []


async def test_a_password_may_be_a_systemd_credential(
    provider: IMAPDouble, bob: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = bob.config_file.read_text()
    bob.config_file.write_text(text.replace('password_file = "ben.password"', 'password_credential = "imap-ben"'))
    [visited] = await visit(bob)
    assert "LoadCredential=imap-ben" in visited.failure
    credential = tmp_path / "imap-ben"
    credential.touch(mode=0o400)
    credential.write_text("from systemd")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    [visited] = await visit(bob)
    assert visited.failure == ""
    said = next(line for line in provider.told if line.startswith("AUTHENTICATE"))
    assert base64.b64decode(said.split()[2]) == b"\0ben\0from systemd"


async def test_a_password_file_that_others_can_read_is_not_used(provider: IMAPDouble, bob: Site) -> None:
    (bob.directory / "ben.password").chmod(0o644)
    [visited] = await visit(bob)
    assert "chmod 600" in visited.failure
    assert provider.told == []


async def test_neither_password_nor_content_is_logged(
    alice: Alice, provider: IMAPDouble, bob: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    provider.put(await alice.seal(original("one")))
    provider.put((await alice.seal(original("two")))[:-200] + b"\r\n")
    provider.instead["UID MOVE"] = [b"TAG NO no\r\n"]
    await visit(bob)
    provider.instead["AUTHENTICATE"] = [b""]
    await visit(bob)
    said = "".join(capfd.readouterr())
    assert "imap_opened" in said or "imap_not_put_away" in said
    for secret in (PASSWORD, base64.b64encode(f"\0ben\0{PASSWORD}".encode()).decode(), "figures", "pkcs7"):
        assert secret not in said
