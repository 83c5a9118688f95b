"""Marks on sealed and on opened mail: a relay of the site knows them again, and nobody else can make one."""

from __future__ import annotations

import pytest

from relay.formats import mime
from relay.journey.marks import SiteMarks
from relay.store.secret import SiteSecret
from tests.testlib import mails

KEY, OLDER = bytes(32), bytes(range(32))
OPENED = b"X-QuMail-Protection: aes; peer=alice; author=peer\r\n" + mails.plain()
SEALED = mime.sealed_message(b"From: ann@alice.example\r\n\r\n", b"ciphertext")


def marks(*secrets: bytes) -> SiteMarks:
    return SiteMarks(SiteSecret(*secrets))


def marked(key: bytes) -> bytes:
    return marks(key).sealed_field(SEALED, "bob", "aes") + SEALED


def test_the_mark_is_known_to_all_relays_with_the_site_secret_also_after_its_rotation() -> None:
    assert marks(KEY).is_sealed_here(marked(KEY), SEALED, "bob", "aes")
    on_the_way = b"Received: by mail.alice.example\r\n\tid 1; today\r\n" + marked(OLDER)
    assert marks(KEY, OLDER).is_sealed_here(on_the_way, SEALED, "bob", "aes")


@pytest.mark.parametrize(
    ("message", "peer", "protection"),
    [
        (mime.sealed_message(b"From: ann@alice.example\r\n\r\n", b"plaintext "), "bob", "aes"),
        (SEALED, "carol", "aes"),
        (SEALED, "bob", "otp"),
    ],
)
def test_another_content_peer_or_protection_has_no_mark(message: bytes, peer: str, protection: str) -> None:
    assert not marks(KEY).is_sealed_here(
        marks(KEY).sealed_field(SEALED, "bob", "aes") + message, message, peer, protection
    )


def test_another_site_cannot_make_it_and_nothing_without_it_is_known() -> None:
    assert not marks(KEY).is_sealed_here(marked(OLDER), SEALED, "bob", "aes")
    assert not marks(KEY).is_sealed_here(SEALED, SEALED, "bob", "aes")
    assert not marks(KEY).is_sealed_here(b"X-QuMail-Sealed: \r\n" + SEALED, SEALED, "bob", "aes")


def test_a_mark_of_protection_is_proven_for_its_own_mail_alone_whatever_servers_add() -> None:
    proven = marks(OLDER).proven(OPENED)
    mark, _, rest = proven.partition(b"\r\n")
    assert marks(KEY, OLDER).is_proven(b"Received: by x\r\n\tid 1; today\r\n" + proven)
    assert marks(OLDER).is_proven(mark.replace(b"; ", b";\r\n ") + b"\r\n" + rest)
    for other in (
        rest,
        OPENED,
        proven + b"more\r\n",
        mark.replace(b"aes", b"otp") + b"\r\n" + rest,
        mark + b"\r\n" + proven,
    ):
        assert not marks(OLDER).is_proven(other)
    assert not marks(KEY).is_proven(proven)
