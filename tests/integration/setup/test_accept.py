"""`qumail-relay identity accept`, and setup with an invitation: a peer is taken in once its words were compared.
Standard: deploy/INSTALL.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from relay.config import load_config
from relay.identity import create_identity, lines_of, peer_document, write_invitation
from tests.integration.setup.answered import BOBS, PEERS, USUAL, contents, invitation, run, words
from tests.testlib.identities import Identities
from tests.testlib.terminal import Terminal

pytestmark = pytest.mark.usefixtures("without_the_end")


def test_a_peer_is_taken_in_with_what_both_sites_share(home: Path, tmp_path: Path, identities: Identities) -> None:
    bob = identities.bob
    result = run(home, *USUAL, "--peer", invitation(tmp_path, bob), "--words", words(bob), *PEERS)
    assert result.exit_code == 0, result.output
    config = load_config(home / "relay.toml")
    assert [kme.group for kme in config.kmes.values()] == ["alice-bob"]
    assert config.site.sae_id == "2"
    assert (home / "state/peers/bob.json").read_bytes() == bob.document
    policy = (home / "policies/bob.example.toml").read_text()
    assert 'levels      = ["aes"]' in policy
    assert 'otherwise   = "hold 2 d"' in policy, "else its sender hears of mail without keys after five days"
    assert 'require     = "sealed"\nunprotected = "mark"' in policy


def test_a_peer_that_names_more_domains_than_are_expected_is_refused_before_anything_is_written(
    home: Path, tmp_path: Path, identities: Identities
) -> None:
    file = invitation(tmp_path, identities.bob)
    refused = run(home, *USUAL, "--peer", file)
    assert refused.exit_code == 2
    assert "--peer names bob.example: say which domains you expect" in refused.output
    assert not (home / "relay.toml").exists()
    other = run(home, *USUAL, "--peer", file, "--peer-domain", "bob.test")
    assert "does not name bob.test" in str(other.exception)
    words_of_eve = run(home, *USUAL, "--peer", file, *PEERS, "--words", words(identities.eve))
    assert "these are not the words" in str(words_of_eve.exception)
    assert not (home / "relay.toml").exists()
    assert not (home / "policies").exists()
    assert not (home / "state/peers/bob.json").exists()
    assert not (home / "policies/bob.example.toml").exists()


@pytest.mark.promise("An invitation exchanged on its way")
def test_other_words_than_those_that_were_heard_are_refused(home: Path, tmp_path: Path, identities: Identities) -> None:
    run(home, *USUAL)
    file = invitation(tmp_path, identities.bob)
    for refused in (
        run(home, file, "--words", words(identities.eve), *BOBS, group="identity accept"),
        run(home, file, group="identity accept", typed="n\n"),
    ):
        assert refused.exit_code == 1
        assert "not taken in" in str(refused.exception)
    assert not (home / "state/peers/bob.json").exists()
    assert not (home / "policies/bob.example.toml").exists()


def test_setup_goes_on_without_a_peer_whose_words_are_others(
    home: Path, tmp_path: Path, identities: Identities
) -> None:
    typed = f"alice.example\n{invitation(tmp_path, identities.bob)}\ndevelopment\n\n\nnone\nn\n"
    result = run(home, typed=typed)
    assert result.exit_code == 0, result.output
    assert "not taken in: the words were not confirmed" in result.output
    assert not list((home / "state/peers").iterdir())
    assert not (home / "policies/bob.example.toml").exists()


def test_a_peer_whose_domain_has_the_name_of_another_file_gets_no_hand_on_that(home: Path, tmp_path: Path) -> None:
    """Such a document is a whole one; a floors.toml out of it would take the policies of everybody out of force."""
    run(home, *USUAL)
    keys, domains = tmp_path / "mallory", ["bob.example", "floors"]
    identity = create_identity(keys, name="mallory", domains=domains)
    document = peer_document(
        keys, identity, name="mallory", domains=domains, sae_id="1", kme_groups=["default"], levels=["aes"]
    )
    (tmp_path / "invitation").write_text(write_invitation(document))
    before = contents(home)
    refused = run(home, str(tmp_path / "invitation"), "--yes", group="identity accept")
    assert refused.exit_code == 1
    assert "'floors' cannot have a policy file" in str(refused.exception)
    assert contents(home) == before


def test_accepting_shows_the_words_and_asks(home: Path, tmp_path: Path, identities: Identities) -> None:
    run(home, *USUAL)
    result = run(home, invitation(tmp_path, identities.bob), group="identity accept", typed="y\ny\n")
    assert result.exit_code == 0, result.output
    for line in lines_of(identities.bob.identity.fingerprint):
        assert line in result.output
    assert (home / "state/peers/bob.json").exists()
    assert "sealed for this site before is in quarantine: `qumail-relay quarantine list`" in result.output
    again = run(home, invitation(tmp_path, identities.bob), group="identity accept")
    assert again.exit_code == 0
    assert "Already pinned" in again.output


def test_without_a_common_group_the_peer_gets_level_pqc_and_check_says_what_is_missing(
    home: Path, tmp_path: Path, identities: Identities
) -> None:
    run(home, *USUAL)
    result = run(home, invitation(tmp_path, identities.bob), "--yes", *BOBS, group="identity accept")
    assert "shared with us: none" in result.output
    policy = (home / "policies/bob.example.toml").read_text()
    assert 'levels      = ["pqc"]' in policy
    checked = run(home, group="check")
    assert checked.exit_code == 1
    assert "WRONG  peer bob  no KME group is shared with it, so that NO QUANTUM KEYS are used" in checked.output
    status = run(home, group="keys status")
    assert status.exit_code == 1
    assert "NO QUANTUM KEYS" in status.output


def test_what_happens_to_unsealed_mail_in_the_peers_name_is_asked_once_in_setup_and_an_option_of_accept(
    home: Path, tmp_path: Path, identities: Identities
) -> None:
    file, policy = invitation(tmp_path, identities.bob), home / "policies/bob.example.toml"
    typed = f"alice.example\n{file}\ndevelopment\n\n\nnone\ny\ny\nquarantine\n"
    assert run(home, typed=typed).exit_code == 0
    assert 'unprotected = "quarantine"' in policy.read_text()
    for flags, said in ((("--unprotected", "refuse"), "refuse"), ((), "mark")):
        policy.unlink()
        (home / "state/peers/bob.json").unlink()
        assert run(home, file, "--yes", *BOBS, *flags, group="identity accept").exit_code == 0
        assert f'unprotected = "{said}"' in policy.read_text()


def test_levels_that_the_two_sites_do_not_share_are_refused_before_anything_is_written(
    home: Path, tmp_path: Path, identities: Identities
) -> None:
    run(home, *USUAL)
    before = contents(home)
    flags = ("--yes", *BOBS, "--level", "otp", "--level", "pqc")
    refused = run(home, invitation(tmp_path, identities.bob), *flags, group="identity accept")
    assert "--level otp: no KME group is shared with peer 'bob'" in str(refused.exception)
    assert contents(home) == before


@pytest.mark.parametrize("quoted", ["> {}", ">> {}", "  >\t{}"])
def test_an_invitation_that_a_mail_program_has_quoted_counts_too_from_a_file_or_pasted(
    home: Path, tmp_path: Path, identities: Identities, quoted: str
) -> None:
    run(home, *USUAL)
    lines = [quoted.format(line) for line in write_invitation(identities.bob.document).splitlines()]
    text = "\n".join(["Bob wrote:", *lines, ""])
    (tmp_path / "quoted").write_text(text)
    asked = run(home, str(tmp_path / "quoted"), group="identity accept", typed="n\n")
    assert "not taken in: the words were not confirmed" in str(asked.exception)
    result = run(home, group="identity accept", typed=text + "y\ny\n")
    assert result.exit_code == 0, result.output
    assert (home / "state/peers/bob.json").read_bytes() == identities.bob.document


def test_an_invitation_that_is_pasted_counts_as_well(home: Path, identities: Identities) -> None:
    run(home, *USUAL)
    typed = write_invitation(identities.bob.document) + "y\ny\n"
    result = run(home, group="identity accept", typed=typed)
    assert result.exit_code == 0, result.output
    assert (home / "state/peers/bob.json").read_bytes() == identities.bob.document


def test_an_invitation_pasted_at_a_terminal_arrives_whole(home: Path, identities: Identities) -> None:
    """It is longer than what a terminal holds back for a program that is slow to read."""
    run(home, *USUAL)
    root = str(Path(__file__).parents[3])
    words = [sys.executable, "-m", "relay", "identity", "accept", "--config", str(home / "relay.toml")]
    terminal = Terminal(words, directory=home, environment={"PYTHONPATH": root})
    assert terminal.asked(["Paste the invitation, all of it"]) is not None
    terminal.paste(write_invitation(identities.bob.document))
    assert terminal.asked(["Are these the words"]) is not None
    terminal.answer("y")
    assert terminal.asked(["Is bob.example a mail domain"]) is not None
    terminal.answer("y")
    assert terminal.end() == 0, terminal.shown[-500:]
    assert (home / "state/peers/bob.json").read_bytes() == identities.bob.document


def test_a_policy_that_is_there_for_the_peer_stays(home: Path, tmp_path: Path, identities: Identities) -> None:
    run(home, *USUAL)
    (home / "policies/bob.example.toml").write_text(mine := 'levels = ["otp"]\n')
    result = run(home, invitation(tmp_path, identities.bob), "--yes", *BOBS, group="identity accept")
    assert "bob.example.toml: kept, though it says something else" in result.output
    assert (home / "policies/bob.example.toml").read_text() == mine
