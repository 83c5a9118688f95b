"""A peer's document names its domains itself: each one counts once the administrator here has confirmed it.
Standard: relay/identity/peers.py; nothing is pinned, and no policy file written, for a domain that nobody expects.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.identity import create_identity, load_peer_documents, peer_document, pin, read_document, same_words, words_of
from relay.identity.document import PinRefused
from tests.unit.identity.homes import NOW, Home, copy_rsa_keys
from tests.unit.identity.test_commands import run, wrong

pytestmark = pytest.mark.usefixtures("policies")
DOMAINS = ("mallory.example", "gmail.com", "bank.example")


@pytest.fixture
def policies(alice: Home) -> None:
    (alice.directory / "policies").mkdir()


@pytest.fixture
def greedy(rsa: Path, tmp_path: Path) -> Path:
    """The document of a peer that names domains of others; its own keys are as they should be."""
    directory = tmp_path / "mallory"
    copy_rsa_keys(rsa, directory)
    identity = create_identity(directory, name="mallory", domains=DOMAINS, now=NOW)
    what = {"sae_id": "sae-mallory", "kme_groups": ["shared"], "levels": ["aes"]}
    path = tmp_path / "mallory.json"
    path.write_bytes(peer_document(directory, identity, name="mallory", domains=DOMAINS, now=NOW, **what))  # type: ignore[arg-type]
    return path


@pytest.mark.promise("A peer has no domain without this administrator's confirmation")
@pytest.mark.parametrize("command", ["import", "accept"])
def test_each_domain_is_asked_about_and_one_no_is_enough(alice: Home, greedy: Path, command: str) -> None:
    for answers in ("y\n", "y\ny\n", "y\ny\nn\n", "y\nn\n", "y\ny\ny\n\n"):
        result = run(alice, command, greedy, stdin=answers)
        assert result.exit_code == 1
        assert load_peer_documents(alice.peers) == {}
        assert not list((alice.directory / "policies").glob("*.toml"))
    assert "gmail.com" in result.output.split("fingerprint" if command == "import" else "words")[-1]
    assert run(alice, command, greedy, stdin="y\n" * 4).exit_code == 0
    assert load_peer_documents(alice.peers)["mallory"].domains == DOMAINS


@pytest.mark.promise("A peer has no domain without this administrator's confirmation")
@pytest.mark.parametrize("command", ["import", "accept"])
def test_without_questions_the_domains_that_are_expected_are_given_and_a_document_cannot_bring_more(
    alice: Home, greedy: Path, command: str
) -> None:
    said = wrong(run(alice, command, greedy, "--yes"))
    assert "gmail.com" in said
    assert "--domain" in said
    more = wrong(run(alice, command, greedy, "--yes", "--domain", "mallory.example"))
    assert "gmail.com" in more
    assert "not expected" in more
    other = wrong(run(alice, command, greedy, "--yes", "--domain", "mallory.example", "--domain", "mall0ry.example"))
    assert "does not name mall0ry.example" in other
    assert load_peer_documents(alice.peers) == {}
    every = [word for domain in DOMAINS for word in ("--domain", domain.upper())]
    assert run(alice, command, greedy, "--yes", *every).exit_code == 0
    assert load_peer_documents(alice.peers)["mallory"].domains == DOMAINS


@pytest.mark.parametrize("command", ["import", "accept"])
def test_words_and_fingerprints_that_were_heard_confirm_no_domain(alice: Home, greedy: Path, command: str) -> None:
    heard = read_document(greedy.read_bytes()).fingerprint
    option = ("--fingerprint", heard) if command == "import" else ("--words", " ".join(words_of(heard)))
    assert "--domain" in wrong(run(alice, command, greedy, *option))
    assert load_peer_documents(alice.peers) == {}


@pytest.mark.promise("A peer has no domain without this administrator's confirmation")
def test_a_later_document_adds_no_domain_that_was_not_confirmed(alice: Home, rsa: Path, tmp_path: Path) -> None:
    directory, domains = tmp_path / "bob", ["bob.example", "gmail.com"]
    copy_rsa_keys(rsa, directory)
    identity = create_identity(directory, name="bob", domains=domains, now=NOW)

    def document(*named: str) -> Path:
        path = tmp_path / "bob.json"
        what = {"sae_id": "sae-bob", "kme_groups": ["shared"], "levels": ["aes"]}
        path.write_bytes(peer_document(directory, identity, name="bob", domains=named, **what))  # type: ignore[arg-type]
        return path

    assert run(alice, "import", document("bob.example"), "--yes", "--domain", "bob.example").exit_code == 0
    assert run(alice, "import", document("bob.example")).exit_code == 0, "nothing is new about the domains"
    more = document("bob.example", "gmail.com")
    for words in ([], ["--yes"], ["--yes", "--domain", "bob.example"], ["--yes", "--replace"]):
        assert run(alice, "import", more, *words).exit_code == 1
        assert run(alice, "accept", more, *words).exit_code == 1
    assert load_peer_documents(alice.peers)["bob"].domains == ("bob.example",)
    asked = run(alice, "import", more, stdin="y\n")
    assert "gmail.com" in asked.output
    assert "bob.example a mail domain" not in asked.output, "it was confirmed before"
    assert load_peer_documents(alice.peers)["bob"].domains == ("bob.example", "gmail.com")
    fewer = run(alice, "import", document("bob.example"), stdin="n\n")
    assert fewer.exit_code == 1
    assert "fewer domains" in fewer.output


def test_what_relay_toml_lists_for_a_peer_is_confirmed(alice: Home, bob: Home, tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(bob.document())
    text = alice.config_file.read_text()
    alice.config_file.write_text(text + '\n[peers.bob]\nsae_id = "sae-bob"\ndomains = ["bob.example"]\n')
    assert run(alice, "import", path, "--yes").exit_code == 0


def test_no_caller_can_forget_it(alice: Home, bob: Home) -> None:
    with pytest.raises(PinRefused, match=r"bob\.example"):
        pin(alice.config, bob.document(), confirmed=(), now=NOW)
    assert load_peer_documents(alice.peers) == {}


@pytest.mark.promise("A peer has no domain without this administrator's confirmation")
def test_the_words_cover_the_domains_in_any_order(alice: Home, rsa: Path, tmp_path: Path) -> None:
    directory, domains = tmp_path / "bob", ["bob.example", "gmail.com"]
    copy_rsa_keys(rsa, directory)
    identity = create_identity(directory, name="bob", domains=domains, now=NOW)

    def fingerprint(*named: str) -> str:
        document = peer_document(
            directory, identity, name="bob", domains=named, sae_id="b", kme_groups=["g"], levels=["aes"]
        )
        return read_document(document).fingerprint

    assert fingerprint("bob.example") != fingerprint("gmail.com") != fingerprint("bob.example", "gmail.com")
    assert fingerprint("gmail.com", "bob.example") == fingerprint("bob.example", "gmail.com") == identity.fingerprint
    assert not same_words(" ".join(words_of(identity.fingerprint)), fingerprint("bob.example"))


def test_what_a_site_shows_is_what_its_invitation_says(alice: Home, rsa: Path, tmp_path: Path) -> None:
    """Also where its certificates name a domain that it does not serve any more."""
    home = Home(tmp_path / "carol", "carol")
    home.directory.mkdir()
    home.config_file.write_text(alice.config_file.read_text().replace("alice", "carol"))
    copy_rsa_keys(rsa, home.identity_directory)
    create_identity(home.identity_directory, name="carol", domains=["carol.example", "old.example"], now=NOW)
    shown = json.loads(run(home, "show", "--json").stdout)["fingerprint"]
    exported = run(home, "export", "-o", tmp_path / "carol.json")
    assert shown == read_document((tmp_path / "carol.json").read_bytes()).fingerprint
    assert shown in exported.stderr
    assert shown in run(home, "show").stdout
