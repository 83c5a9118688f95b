"""What is pinned, and what a newer document may change: trust is given once and not taken over.
Standard: whatever contradicts what is known is refused, and says what to do.
"""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.identity import (
    Expiry,
    common_groups,
    examine,
    expiring,
    identity_findings,
    load_identity,
    load_peer_documents,
    read_document,
    renew_identity,
    trusted_peers,
)
from relay.identity.document import BadDocument, ChangedKey, PinRefused, Rollback
from relay.identity.pairs import Role
from relay.identity.peers import ONE_SAE_ID
from tests.unit.identity.homes import NOW, Home, inner, make_home, pin, signed, write_config


def _changed_config(home: Home, more: str) -> Home:
    return write_config(home.directory, home.name, more=more)


def test_a_pinned_peer_is_there_under_its_name(alice: Home, bob: Home) -> None:
    found = pin(alice.config, bob.document(), now=NOW)
    assert (found.change, found.before, found.site) == ("new", None, "bob")
    peers = load_peer_documents(alice.peers)
    assert list(peers) == ["bob"]
    assert peers["bob"] == found.peer
    assert trusted_peers(alice.config) == peers
    assert common_groups(alice.config, found.peer) == ("shared",)


def test_a_peer_may_be_given_another_name(alice: Home, bob: Home) -> None:
    found = pin(alice.config, bob.document(), name="robert", now=NOW)
    assert (found.peer.name, found.site) == ("robert", "bob")
    assert load_peer_documents(alice.peers)["robert"].name == "robert"


@pytest.mark.parametrize("name", ["", ".bob", "../bob", "a/b", "Bob GmbH", "x" * 65, "bob\n"])
def test_a_name_that_is_none_for_a_file_is_refused(alice: Home, bob: Home, name: str) -> None:
    with pytest.raises(PinRefused, match="--name"):
        pin(alice.config, bob.document(), name=name, now=NOW)
    assert not alice.peers.exists() or not list(alice.peers.iterdir())


def test_the_same_document_again_changes_nothing(alice: Home, bob: Home) -> None:
    document = bob.document()
    pin(alice.config, document, now=NOW)
    assert pin(alice.config, document, now=NOW).change == "same"


@pytest.mark.usefixtures("spare_is_made")
def test_a_newer_document_with_renewed_keys_is_taken(alice: Home, bob: Home) -> None:
    first = pin(alice.config, bob.document(), now=NOW).peer
    renew_identity(bob.identity_directory, name="bob", domains=["bob.example", "b.example"], now=NOW)
    found = pin(alice.config, bob.document(domains=["bob.example", "b.example"]), now=NOW)
    assert found.change == "newer"
    assert found.before == first
    assert found.added == ("b.example",)
    assert found.peer.pinned_keys == first.pinned_keys
    assert found.peer.fingerprint != first.fingerprint
    assert load_peer_documents(alice.peers)["bob"].domains == ("bob.example", "b.example")


def test_an_older_document_is_refused_unless_told_so(alice: Home, bob: Home) -> None:
    older, newer = bob.document(), bob.document()
    pin(alice.config, newer, now=NOW)
    with pytest.raises(Rollback, match="is not newer than the pinned"):
        pin(alice.config, older, now=NOW)
    assert load_peer_documents(alice.peers)["bob"] == read_document(newer)
    assert pin(alice.config, older, replace=True, now=NOW).change == "replaced"
    assert load_peer_documents(alice.peers)["bob"] == read_document(older)


def test_another_document_with_the_same_serial_number_is_refused(alice: Home, bob: Home) -> None:
    document = bob.document()
    pin(alice.config, document, now=NOW)
    other = signed(inner(document) | {"levels": ["pqc"]}, bob.identity.signing.private_key)
    with pytest.raises(Rollback):
        pin(alice.config, other, now=NOW)


def test_changed_keys_are_refused_unless_told_so(alice: Home, bob: Home, rsa: Path, tmp_path: Path) -> None:
    pin(alice.config, bob.document(), now=NOW)
    somebody = make_home(tmp_path / "somebody", "bob", rsa)
    newer = somebody.document(now=NOW + timedelta(minutes=1))
    with pytest.raises(ChangedKey, match="over the telephone"):
        pin(alice.config, newer, now=NOW)
    assert load_peer_documents(alice.peers)["bob"].fingerprint == bob.identity.fingerprint
    assert pin(alice.config, newer, replace=True, now=NOW).change == "replaced"
    assert load_peer_documents(alice.peers)["bob"].fingerprint == somebody.identity.fingerprint


def test_replacing_with_a_newer_document_of_the_same_keys_is_no_replacement(alice: Home, bob: Home) -> None:
    pin(alice.config, bob.document(), now=NOW)
    assert examine(alice.config, bob.document(), replace=True, now=NOW).change == "newer"


def test_our_own_domain_and_sae_are_refused_whatever_is_said(alice: Home) -> None:
    with pytest.raises(PinRefused) as caught:
        pin(alice.config, alice.document(), replace=True, now=NOW)
    assert caught.value.problems == [
        "the domain alice.example already belongs to this site",
        f"the SAE 'sae-alice' already belongs to this site; {ONE_SAE_ID}",
        *(f"certificate {role}: its public key already belongs to this site" for role in Role),
    ]


def test_a_domain_of_another_peer_is_refused_whatever_is_said(
    alice: Home, bob: Home, rsa: Path, tmp_path: Path
) -> None:
    pin(alice.config, bob.document(), name="robert", now=NOW)
    somebody = make_home(tmp_path / "somebody", "bob", rsa)
    with pytest.raises(PinRefused, match=r"bob\.example already belongs to peer robert"):
        pin(alice.config, somebody.document(sae_id="another"), replace=True, now=NOW)


def test_a_domain_of_a_peer_in_relay_toml_is_refused_in_either_spelling(alice: Home, rsa: Path, tmp_path: Path) -> None:
    somebody = make_home(tmp_path / "somebody", "xn--bcher-kva", rsa)
    table = '[peers.library]\ndomains = ["Bücher.example"]\nsae_id = "sae-library"\n'
    with pytest.raises(PinRefused, match=r"xn--bcher-kva\.example already belongs to peer library"):
        pin(_changed_config(alice, table).config, somebody.document(), name="other", now=NOW)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ('domains = ["bob.example"]\nsae_id = "other"', "the document says SAE 'sae-bob', [peers.bob] says 'other'"),
        ('domains = ["x.example"]\nsae_id = "sae-bob"', "[peers.bob] has the domain x.example"),
        (
            'domains = ["bob.example"]\nsae_id = "sae-bob"\nkme_groups = ["shared"]',
            "[peers.bob] says KME group 'shared', the document says theirs",
        ),
    ],
)
def test_a_document_that_contradicts_relay_toml_is_refused(alice: Home, bob: Home, table: str, expected: str) -> None:
    config = _changed_config(alice, f"[peers.bob]\n{table}\n").config
    with pytest.raises(PinRefused) as caught:
        pin(config, bob.document(kme_groups=["theirs"]), now=NOW)
    assert expected in str(caught.value)


def test_a_document_that_agrees_with_relay_toml_is_taken(alice: Home, bob: Home) -> None:
    table = '[peers.bob]\ndomains = ["bob.example"]\nsae_id = "sae-bob"\nkme_groups = ["shared"]\n'
    assert pin(_changed_config(alice, table).config, bob.document(), now=NOW).change == "new"


@pytest.mark.parametrize("days", [-2, 731, 4000])
def test_a_document_whose_certificates_are_not_valid_now_is_refused(alice: Home, bob: Home, days: int) -> None:
    with pytest.raises(PinRefused, match="so not now"):
        pin(alice.config, bob.document(), now=NOW + timedelta(days=days))


def test_an_unknown_format_is_refused(alice: Home, bob: Home) -> None:
    with pytest.raises(BadDocument, match="format 3"):
        pin(alice.config, bob.document().replace(b'"format": 2', b'"format": 3'), now=NOW)


def test_without_an_identity_table_nothing_is_pinned_and_nobody_trusted(alice: Home, bob: Home) -> None:
    config = alice.config.model_copy(update={"identity": None})
    assert trusted_peers(config) == {}
    assert identity_findings(config, NOW) == []
    with pytest.raises(ConfigError, match=r"\[identity\]"):
        pin(config, bob.document(), now=NOW)


def test_a_pinned_document_that_was_changed_is_named(alice: Home, bob: Home) -> None:
    pin(alice.config, bob.document(), now=NOW)
    path = alice.peers / "bob.json"
    path.write_bytes(path.read_bytes().replace(b'"signature": "', b'"signature": "AAAA'))
    (alice.peers / "eve.json").write_bytes(b"{}")
    with pytest.raises(ConfigError) as caught:
        trusted_peers(alice.config)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [str(path), str(alice.peers / "eve.json")]


def test_documents_copied_into_the_directory_cannot_take_over_a_domain(alice: Home, bob: Home) -> None:
    pin(alice.config, bob.document(), now=NOW)
    shutil.copy(alice.peers / "bob.json", alice.peers / "eve.json")
    with pytest.raises(ConfigError, match=r"bob\.example already belongs to peer eve"):
        trusted_peers(alice.config)


def test_a_directory_or_document_that_others_may_write_is_not_trusted(alice: Home, bob: Home) -> None:
    pin(alice.config, bob.document(), now=NOW)
    (alice.peers / "bob.json").chmod(0o666)
    with pytest.raises(ConfigError, match="lets others write it"):
        trusted_peers(alice.config)
    alice.peers.chmod(0o777)
    with pytest.raises(ConfigError, match="others can write to this directory"):
        trusted_peers(alice.config)


@pytest.mark.parametrize(
    ("days", "ours", "stage"), [(730 - 31, 0, 0), (730 - 30, 4, 30), (730 - 7, 4, 7), (730 - 1, 4, 1), (731, 4, 0)]
)
def test_certificates_that_end_are_named_with_the_days_left(
    alice: Home, bob: Home, days: int, ours: int, stage: int
) -> None:
    pin(alice.config, bob.document(), now=NOW)
    peers = load_peer_documents(alice.peers)
    ending = expiring(alice.identity, peers, NOW + timedelta(days=days))
    assert len([each for each in ending if each.what.startswith("our certificate")]) == ours
    assert len([each for each in ending if each.what.startswith("the certificate of bob")]) == ours
    assert {each.days for each in ending} <= {730 - days}
    assert {each.stage for each in ending} <= {stage}


def test_an_expiry_reads_well() -> None:
    assert str(Expiry("it", 6)) == "it ends in 6 days"
    assert str(Expiry("it", 1)) == "it ends in 48 hours or less"
    assert str(Expiry("it", 0)) == "it ends in 24 hours or less"
    assert str(Expiry("it", -1)) == "it has ended"


def test_the_cas_certificate_is_watched_too(alice: Home) -> None:
    later = NOW + timedelta(days=3645)
    identity = load_identity(alice.identity_directory, now=later)
    assert "our CA certificate ends in 7 days" in map(str, expiring(identity, {}, later))


def test_nothing_is_found_where_all_is_well(alice: Home, bob: Home) -> None:
    pin(alice.config, bob.document(), now=NOW)
    assert identity_findings(alice.config, NOW) == [("identity", ()), ("peer document bob", ())]


def test_findings_say_what_is_wrong_and_what_helps(alice: Home, bob: Home) -> None:
    pin(alice.config, bob.document(kme_groups=["theirs"]), now=NOW)
    alice.config_file.write_text(
        alice.config_file.read_text().replace('["alice.example"]', '["alice.example", "ä.example"]')
    )
    [(_, ours), (what, theirs)] = identity_findings(alice.config, NOW + timedelta(days=725))
    assert ours[0] == "the certificates do not name xn--4ca.example; renew them: qumail-relay identity new --renew"
    assert len(ours) == 5
    assert what == "peer document bob"
    assert theirs[0] == "shares no KME group with us; it has theirs"
    assert theirs[1].endswith("ends in 5 days; ask the peer for its new document")


def test_findings_report_what_cannot_be_read(alice: Home, bob: Home) -> None:
    pin(alice.config, bob.document(), now=NOW)
    (alice.peers / "bob.json").write_bytes(b"")
    alice.path("ca.pem").unlink()
    [(_, ours), (what, theirs)] = identity_findings(alice.config, NOW)
    assert "ca.pem: missing" in ours[0]
    assert what == "peer documents"
    assert "bob.json: not a peer document" in theirs[0]
