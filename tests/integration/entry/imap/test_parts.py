"""What the watcher understands of servers' answers, however they are cut into pieces, and whom it takes mail to be from.
Standard: RFC 3501 7.4.2 and 9; octets that are no IMAP end in an error and in nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from relay.config import load_config
from relay.entry.imap.aioimaplib_base import IMAPConnection, Request, Untagged
from relay.entry.imap.marks import OriginalMarks, mark_in
from relay.entry.imap.opening import is_recent
from relay.entry.imap.responses import Fetched, encoded, fetched, namespaces, searched, uid_set
from relay.errors import ConfigError, MailboxUnavailable
from relay.store.secret import SiteSecret

DEPLOY = Path(__file__).parents[4] / "deploy" / "imap"

ANSWER = (
    b'* 3 FETCH (FLAGS (\\Seen $x) UID 7 INTERNALDATE " 1-Nov-2026 10:00:00 +0000" RFC822.SIZE 12 '
    b"BODY[] {13}\r\nA: b\r\n\r\n{9}\r\n)\r\n"
    b'* 9 FETCH (UID 8 BODY[HEADER.FIELDS ("A" B)]<0> "q\\"uo\\\\ted" FLAGS ())\r\n'
    b"* 4 EXISTS\r\n* 10 FETCH (UID 9 BODY[] NIL)\r\n* 11 FETCH (FLAGS (\\Seen))\r\n"
)
MEANS = [
    Fetched(7, ("\\Seen", "$x"), " 1-Nov-2026 10:00:00 +0000", 12, b"A: b\r\n\r\n{9}\r\n"),
    Fetched(8, (), "", 0, b'q"uo\\ted'),
    Fetched(9),
]


async def untagged(pieces: list[bytes]) -> list[Untagged]:
    """What a command gets that is answered with these pieces."""
    protocol = IMAPConnection("server")
    protocol.data_received(b"* OK hello\r\n")
    protocol.state = "SELECTED"
    protocol.transport = asyncio.Transport()
    request = Request("FETCH", "T1", "1:*", "BODY[]", prefix="UID")
    protocol.pending_async_commands["FETCH"] = request
    protocol.allow(100_000)
    for piece in pieces:
        protocol.data_received(piece)
    if protocol.failure is not None:
        raise protocol.failure
    assert request.response.result == "OK"
    return request.untagged


@given(st.lists(st.integers(0, len(ANSWER) + 10), max_size=20))
def test_an_answer_means_the_same_however_it_is_cut(cuts: list[int]) -> None:
    answer = ANSWER + b"T1 OK done\r\n"
    ends = [0, *sorted(cuts), len(answer)]
    pieces = [answer[begin:end] for begin, end in itertools.pairwise(ends)]
    assert list(fetched(asyncio.run(untagged(pieces)))) == MEANS


@given(st.lists(st.one_of(st.binary(max_size=50), st.sampled_from(
    [b"* 1 FETCH (", b"UID 1 ", b"BODY[] {5}\r\n", b"FLAGS (", b")", b'"', b"\r\n", b"{3}", b"\\", b"NIL", b"T1 OK\r\n", b"+ \r\n"]
)), max_size=12))  # fmt: skip
def test_octets_of_any_kind_are_understood_or_an_error(pieces: list[bytes]) -> None:
    class Deaf(asyncio.Transport):
        def abort(self) -> None:
            """Nothing is there that could be ended."""

    async def receive() -> None:
        protocol = IMAPConnection("server")
        protocol.transport = Deaf()
        protocol.data_received(b"* OK hello\r\n")
        request = Request("FETCH", "T1", prefix="UID")
        protocol.pending_async_commands["FETCH"] = request
        for piece in pieces:
            protocol.data_received(piece)
        try:
            found = list(fetched(request.untagged))
        except ValueError:
            return
        assert all(isinstance(each.content, bytes) and isinstance(each.uid, int) for each in found)

    asyncio.run(receive())


@pytest.mark.parametrize(
    ("uids", "expected"), [([], ""), ([3], "3"), ([5, 3, 4, 9], "3:5,9"), ([1, 2, 4, 5], "1:2,4:5")]
)
def test_uids_are_written_as_ranges(uids: list[int], expected: str) -> None:
    assert uid_set(uids) == expected


def test_folder_names_go_over_the_wire_in_modified_utf7() -> None:
    """The examples of RFC 3501, 5.1.3."""
    assert encoded("~peter/mail/台北/日本語") == "~peter/mail/&U,BTFw-/&ZeVnLIqe-"
    assert encoded('a & "b"') == 'a &- "b"'


@pytest.mark.parametrize(
    ("said", "placed"),
    [
        ('(("INBOX." ".")) NIL NIL', ["INBOX.Sealed", "INBOX.Sealed", "INBOX", "INBOX.Shared.x", "INBOX.&ZeU-"]),
        (
            '(("INBOX." ".")) NIL (("Shared." "."))',
            ["INBOX.Sealed", "INBOX.Sealed", "INBOX", "Shared.x", "INBOX.&ZeU-"],
        ),
        (
            '(("" "/")("#mh/" "/" "X-PARAM" ("a" "b"))) NIL NIL',
            ["Sealed", "INBOX.Sealed", "INBOX", "Shared.x", "&ZeU-"],
        ),
        ("NIL NIL NIL", ["Sealed", "INBOX.Sealed", "INBOX", "Shared.x", "&ZeU-"]),
        ("", ["Sealed", "INBOX.Sealed", "INBOX", "Shared.x", "&ZeU-"]),
    ],
)
def test_a_folder_that_no_namespace_can_have_is_one_of_the_users_own(said: str, placed: list[str]) -> None:
    """RFC 2342; names that the administrator wrote as the server spells them stay as they are."""
    found = namespaces([(b"* NAMESPACE " + said.encode(),)] if said else [])
    assert [found.placed(name) for name in ("Sealed", "INBOX.Sealed", "INBOX", "Shared.x", "日")] == placed


def test_search_results_over_several_lines_are_one() -> None:
    assert searched([(b"* SEARCH 9 2",), (b"* SEARCH",), (b"* 3 EXISTS",), (b"* SEARCH 1",)]) == [1, 2, 9]


def test_marks_are_of_one_account_and_message_and_outlive_a_new_secret() -> None:
    older, newer = b"o" * 32, b"n" * 32
    [before] = OriginalMarks(SiteSecret(older), "ben").of(b"sealed")
    now = OriginalMarks(SiteSecret(newer, older), "ben").of(b"sealed")
    assert now[1] == before
    others = {
        *OriginalMarks(SiteSecret(older), "bea").of(b"sealed"),
        *OriginalMarks(SiteSecret(older), "ben").of(b"other"),
        now[0],
    }
    assert before not in others
    assert mark_in(f"X-QuMail-Protection: aes; peer=alice; author=peer; sealed={before}\r\n".encode()) == before
    assert mark_in(f"X-QuMail-Protection: aes; peer=alice; author=peer; sealed={before[1:]}\r\n".encode()) == ""


def test_the_sample_in_deploy_is_part_of_a_relay_toml(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, (DEPLOY / "mailboxes.toml").read_text()))
    assert config.imap["ben"].folders == ("INBOX",)
    assert config.imap["office"].token_command == ("/usr/local/bin/oauth-token", "office@bob.example")


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("[imap.b]\nhost = 'h'\nuser = 'u'\n", "set just one of password_file, password_credential and token_command"),
        ("[imap.b]\nhost = 'h'\nuser = 'u'\npassword_file = 'p'\ntoken_command = ['t']\n", "set just one of"),
        ("[imap.b]\nhost = 'h:993'\nuser = 'u'\npassword_file = 'p'\n", "imap.b.host"),
        ("[imap.b]\nhost = 'h'\nuser = 'u@b.example'\npassword_file = 'p'\nfolders = ['Sealed']\n", "'Sealed' is one of folders"),
        ("[imap.b]\nhost = 'h'\nuser = 'u'\npassword_file = 'p'\n", "set addresses: those whose mail this mailbox gets"),
        ("[imap.b]\nhost = 'h'\nuser = \"u\\r\\nA1 LOGOUT\"\npassword_file = 'p'\n", "imap.b.user"),
        ("[imap.b]\nhost = 'h'\nuser = 'u'\npassword_file = 'p'\ntls = 'none'\n", "imap.b.tls"),
    ],
)  # fmt: skip
def test_accounts_that_cannot_be_are_refused(table: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=expected.replace("[", r"\[")):
        load_config(written(tmp_path, table))


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_relay_with_mailboxes_says_which_package_they_need_and_lacks(command: str, tmp_path: Path) -> None:
    (tmp_path / "p").touch(mode=0o600)
    (tmp_path / "policies").mkdir()
    config = written(tmp_path, "[imap.b]\nhost = 'h'\nuser = 'u@bob.example'\npassword_file = 'p'\n")
    program = "import sys; sys.modules['aioimaplib'] = None; from relay.cli import main; main()"
    words = [sys.executable, "-P", "-c", program, command, "--config", str(config)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert "[imap.*] needs the Python package aioimaplib (the extra `imap`)" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def written(directory: Path, more: str) -> Path:
    """A relay.toml that only watches mailboxes."""
    path = directory / "relay.toml"
    path.write_text(
        '[site]\nname = "bob"\ndomains = ["bob.example"]\nsae_id = "1"\n[policies]\ndirectory = "policies"\n'
        f'[store]\ndatabase = "relay.db"\nsecret = "secret"\n{more}'
    )
    return path


async def test_a_command_on_a_connection_that_has_ended_fails_at_once() -> None:
    protocol = IMAPConnection("server")
    protocol.connection_lost(None)
    with pytest.raises(MailboxUnavailable, match="closed the connection"):
        await protocol.execute(Request("NOOP", "T1"))


def test_only_a_message_that_is_recent_waits_for_keys_that_are_on_their_way() -> None:
    now = datetime.now(timezone(timedelta(hours=2)))
    dates = [now, now - timedelta(minutes=5), now - timedelta(hours=1), now - timedelta(days=400)]
    assert [is_recent(f"{date:%d-%b-%Y %H:%M:%S %z}") for date in dates] == [True, True, False, False]
    assert not is_recent(" 1-Nov-2020 10:00:00 +0000")
    assert is_recent(""), "a server that does not say when"
