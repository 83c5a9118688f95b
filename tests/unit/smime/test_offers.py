"""Certificates that come with signed mail are kept within limits, and strangers take no room from known CAs.
Standard: RFC 8550 2.3; nothing of the directory in force is touched.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from relay.config import SMIMESettings
from relay.smime import CertificateDirectory, OwnKey, offers
from relay.smime.findings import ends_in_use
from relay.smime.importing import file_under
from relay.smime.offers import Offers
from relay.smime.opening import SMIMEOpener
from tests.testlib.smime import ca, certified, pem

NOW = datetime.now(UTC)
BEN = "ben@bob.example"


@pytest.fixture
def kept(tmp_path: Path) -> Offers:
    return Offers(CertificateDirectory(tmp_path / "offered"))


def keep(kept: Offers, name: str, own: OwnKey, *, vouched: bool = False) -> bool:
    return kept.keep(name, own.certificate, NOW, vouched=vouched)


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
