"""Certificates that come with signed mail are kept within limits, and strangers take no room from known CAs.
Standard: RFC 8550 2.3; nothing of the directory in force is touched.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from relay.config import SMIMESettings
from relay.errors import ConfigError
from relay.smime import CertificateDirectory, OwnKey, offers
from relay.smime.findings import ends_in_use
from relay.smime.importing import file_under
from relay.smime.offers import Offers
from relay.smime.opening import SMIMEOpener
from tests.testlib.openssl_cms import ENTITY, mail, signed
from tests.testlib.smime import ca, certified, pem

NOW = datetime.now(UTC)
BEN = "ben@bob.example"


LOOK_ALIKE = "ben@b\u043eb.example"


@pytest.fixture
def kept(tmp_path: Path) -> Offers:
    return Offers(CertificateDirectory(tmp_path / "offered"))


def keep(kept: Offers, name: str, own: OwnKey, *, vouched: bool = False) -> bool:
    return kept.keep(name, own.certificate, NOW, vouched=vouched)


@pytest.mark.promise(
    "Certificates that come with signed mail seal nothing and prove nothing until the administrator accepts them"
)
def test_of_an_address_a_few_are_kept_and_a_stranger_displaces_none(kept: Offers) -> None:
    forged = [certified(BEN, number=number) for number in range(4)]
    assert [keep(kept, BEN, each) for each in [*forged, forged[0]]] == [True, True, True, False, False]
    genuine = certified(BEN, kind="p256")
    assert keep(kept, BEN, genuine, vouched=True)
    assert not keep(kept, BEN, genuine, vouched=True)
    assert not keep(kept, BEN, forged[3])
    found = kept.directory.named(BEN).certificates
    assert found == (genuine.certificate, forged[0].certificate, forged[1].certificate)


def test_what_has_ended_makes_room(kept: Offers) -> None:
    old = [certified(BEN, number=number, days=(-9, 1)) for number in range(3)]
    assert all(keep(kept, BEN, each) for each in old)
    assert kept.keep(BEN, certified(BEN, number=4).certificate, NOW + timedelta(days=2), vouched=False)
    assert len(kept.directory.named(BEN).certificates) == 1


@pytest.mark.promise(
    "Certificates that come with signed mail seal nothing and prove nothing until the administrator accepts them"
)
def test_a_flood_of_addresses_ends_at_a_limit_that_no_known_ca_meets(
    kept: Offers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "MAX_UNVOUCHED_NAMES", 2)
    monkeypatch.setattr(offers, "MAX_NAMES", 3)
    monkeypatch.setattr(kept, "clock", lambda: 0.0)
    names = [f"x{number}@bob.example" for number in range(6)]
    forged = {each: certified(each, kind="p256", number=1) for each in names}
    assert [keep(kept, each, forged[each]) for each in names[:3]] == [True, True, False]
    assert [keep(kept, each, forged[each], vouched=True) for each in names[3:]] == [True, False, False]
    assert keep(kept, names[0], certified(names[0], kind="p256", number=2))
    for each in names[:2]:
        kept.directory.put(each, ())
    assert not keep(kept, names[2], forged[names[2]]), "counted once a minute"
    monkeypatch.setattr(kept, "clock", lambda: offers.COUNT_S)
    assert keep(kept, names[2], forged[names[2]])


def test_what_is_in_use_and_ends_soon_is_named_by_domain(tmp_path: Path, kept: Offers) -> None:
    own = [certified("a@alice.example", days=(-300, 10)), certified("a@alice.example", number=1, days=(-600, -9))]
    (tmp_path / "ca.pem").write_bytes(pem(ca().certificate))
    settings = SMIMESettings(anchors=(tmp_path / "ca.pem",))
    directory = CertificateDirectory(tmp_path / "certificates")
    opener = SMIMEOpener.of_settings(settings, ("alice.example",), lambda: own, directory, kept)
    people = {BEN: 20, "bea@bob.example": 5, "carl@carol.example": 300, "dan@dora.example": -3, "eve@eve.example": 9}
    for name, days in people.items():
        file_under(directory, name, certified(name, days=(-300, days)).certificate)
        if name != "eve@eve.example":  # nothing was sealed to Eve
            directory.of(name)
    directory.of("nobody@bob.example")
    ends = {name: round((end - NOW) / timedelta(days=1)) for name, end in ends_in_use(opener, directory, NOW).items()}
    assert ends == {"site": 10, "CA": 3650, "bob.example": 5, "dora.example": -3}
    file_under(directory, "bea@bob.example", certified("bea@bob.example", number=1).certificate)
    (directory.path / "dora.example" / "dan.pem").unlink()
    ends = {name: round((end - NOW) / timedelta(days=1)) for name, end in ends_in_use(opener, directory, NOW).items()}
    assert ends == {"site": 10, "CA": 3650, "bob.example": 20}


@pytest.fixture
def opener(tmp_path: Path, kept: Offers) -> SMIMEOpener:
    """Alice's, who knows no CA."""
    return SMIMEOpener.of_settings(
        SMIMESettings(), ("alice.example",), list, CertificateDirectory(tmp_path / "certificates"), kept
    )


@pytest.mark.promise(
    "Certificates that come with signed mail seal nothing and prove nothing until the administrator accepts them"
)
@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("From: Ben <ben@bob.example>", [BEN]),
        ("From: BEN@Bob.Example", [BEN]),
        ('From: "ben@bob.example" <eve@eve.example>', ["eve@eve.example"]),
        ("From: =?utf-8?q?ben=40bob.example?= <eve@eve.example>", []),
        ("From: ben@bob.example (<eve@eve.example>)", [BEN]),
        ("From: eve@eve.example\r\nFrom: ben@bob.example", []),
        ("From: ben@bob.example, eve@eve.example", []),
        ("From: ben@bob.example <eve@eve.example>", []),
        ("From: <@eve.example:ben@bob.example>", []),
        ("From: ben@bob.example\0@eve.example", []),
        ("From : ben@bob.example", [BEN]),
        ("Sender: ben@bob.example", []),
        ("From: ben@bob.example.", []),
        (f"From: {LOOK_ALIKE}", ["ben@xn--bb-fmc.example"]),
        ("From: ben@xn--bb-fmc.example", ["ben@xn--bb-fmc.example"]),
        ("From: b\u0435n@bob.example", []),
        ('From: "../../x"@bob.example', ['"../../x"@bob.example']),
        (f"From: {'a' * 252}@long.example", []),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
async def test_a_certificate_is_offered_for_the_one_author_beyond_doubt_alone(
    opener: SMIMEOpener, field: str, names: list[str]
) -> None:
    every = (BEN, "eve@eve.example", "ben@xn--bb-fmc.example", '"../../x"@bob.example', f"{'a' * 252}@long.example")
    message = mail(signed(ENTITY, certified(*every, kind="p256", number=8))).replace(
        b"From: Ben <ben@bob.example>", field.encode()
    )
    await opener.read(message, ["ann@alice.example"])
    assert list(opener.offers.directory.names()) == names
    there = [each.name for each in opener.offers.directory.path.glob("*")]
    assert there == [each.rpartition("@")[2] for each in names]


def raising(error: int) -> Callable[..., Any]:
    def fails(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    return fails


def test_what_cannot_be_written_leaves_nothing_behind(kept: Offers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a directory for each domain that somebody makes up would stay, and none of them is counted."""
    monkeypatch.setattr(os, "fsync", raising(errno.ENOSPC))
    with pytest.raises(ConfigError, match="No space left on device"):
        keep(kept, BEN, certified(BEN))
    assert list(kept.directory.path.iterdir()) == []
    monkeypatch.undo()
    assert keep(kept, BEN, certified(BEN))
    kept.directory.put(BEN, ())
    assert list(kept.directory.path.iterdir()) == []


def test_what_a_killed_relay_had_half_written_is_no_offer(kept: Offers) -> None:
    assert keep(kept, BEN, certified(BEN))
    (kept.directory.path / "bob.example" / ".writing-0123").write_bytes(pem(certified(BEN).certificate)[:100])
    assert list(kept.directory.names()) == [BEN]
    assert keep(kept, BEN, certified(BEN, number=1))
    assert len(kept.directory.named(BEN).certificates) == 2


def test_of_relays_that_write_at_once_one_is_whole(kept: Offers) -> None:
    each = [certified(BEN, kind="p256", number=number) for number in range(8)]
    others = [Offers(CertificateDirectory(kept.directory.path)) for _ in each]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pair: keep(pair[0], BEN, pair[1]), zip(others, each, strict=True)))
    found = kept.directory.named(BEN)
    assert not found.cause
    assert found.certificates
    assert set(found.certificates) <= {own.certificate for own in each}
    assert [file.name for file in kept.directory.path.glob("*/*")] == ["ben.pem"]
