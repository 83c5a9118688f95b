"""A site that only sends, and pairs without quantum keys: what invitations say, what is written for them, what is found.
Standard: nothing is published that cannot be opened, and no policy prefers what cannot be had.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from relay.identity import read_document, write_invitation
from relay.identity.document import write_document
from relay.kme import DevelopmentKMEs
from relay.setup.peers import document_in
from tests.integration.setup.answered import run
from tests.integration.setup.test_two_sites import blocks_of_ports
from tests.testlib import mails
from tests.testlib.identities import Identities, Person
from tests.testlib.ports import free_address
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process
from tests.testlib.submit import submit

SENDS = ("--integration", "smarthost", "--next-hop")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Test message and `check` run as in earnest, as the user who runs the tests."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("QUMAIL_RELAY_USER", "root")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("COLUMNS", "300")


def set_up(home: Path, person: Person, name: str, *flags: str) -> Result:
    """`setup` without a KME, with keys that were made before."""
    state = home / "state"
    state.mkdir(parents=True, mode=0o700)
    shutil.copytree(person.directory, state / "identity")
    base = str(blocks_of_ports(1)[0])
    usual = ("--yes", "--domain", f"{name}.example", "--kme", "none", "--postfix", "none", "--port-base", base)
    return run(home, *usual, *flags)


def invited(home: Path) -> tuple[Path, Result]:
    path = home / "invitation"
    return path, run(home, "-o", str(path), group="identity invite")


def check(home: Path) -> dict[str, list[str]]:
    """What `check` finds of a site, without its next hops."""
    said = run(home, "--json", "--no-next-hops", "--before-start", group="check").stdout
    return {each["what"]: each["problems"] for each in json.loads(said)}


def test_a_site_that_opens_no_mail_invites_none_and_its_peer_refuses_mail_for_it_with_the_reason(
    tmp_path: Path, identities: Identities
) -> None:
    alice, bob = tmp_path / "alice", tmp_path / "bob"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relay.cli.setup._as_relay", lambda *_: True)
        set_up(alice, identities.alice, "alice", *SENDS, str(free_address()))
    path, said = invited(alice)
    assert "This site cannot receive, and the document says so" in said.output
    assert "\nLevels: none, it cannot receive\n" in path.read_text()
    assert read_document(document_in(path.read_bytes())).levels == ()
    taken = set_up(bob, identities.bob, "bob", "--peer", str(path), "--peer-domain", "alice.example")
    assert taken.exit_code == 0, "its test message and `check` take this as it is meant"
    assert "levels      none: it cannot receive sealed mail, and mail to it is refused" in taken.output
    explained = run(bob, "ben@bob.example", "ann@alice.example", group="policy explain").output
    assert "refused" in explained
    assert "peer 'alice' cannot receive: its document says that it opens no sealed mail" in " ".join(explained.split())
    assert 'require     = "sealed"' in (bob / "policies/alice.example.toml").read_text(), "what it sends is sealed"
    back, _ = invited(bob)
    assert run(alice, str(back), "--yes", "--domain", "bob.example", group="identity accept").exit_code == 0
    assert "require" not in (alice / "policies/bob.example.toml").read_text(), "nothing arrives there"


@pytest.mark.usefixtures("without_the_end")
def test_a_level_that_cannot_be_opened_here_is_not_published(tmp_path: Path, identities: Identities) -> None:
    set_up(tmp_path / "alice", identities.alice, "alice", *SENDS, str(free_address()))
    set_up(tmp_path / "bob", identities.bob, "bob")
    refused = run(tmp_path / "alice", "--level", "pqc", group="identity export")
    assert "--level pqc: this relay cannot open it: relay.toml has neither [incoming]" in str(refused.exception)
    refused = run(tmp_path / "bob", "--level", "aes", group="identity export")
    assert "--level aes: this relay cannot open it: relay.toml has no [kmes.*]" in str(refused.exception)


@pytest.mark.usefixtures("without_the_end")
async def test_a_pair_without_quantum_keys_counts_no_mail_as_a_downgrade(
    tmp_path: Path, identities: Identities
) -> None:
    alice, bob = tmp_path / "alice", tmp_path / "bob"
    async with Sink() as sink:
        set_up(bob, identities.bob, "bob")
        path, _ = invited(bob)
        flags = (*SENDS, str(sink.address), "--peer", str(path), "--peer-domain", "bob.example")
        assert (await asyncio.to_thread(set_up, alice, identities.alice, "alice", *flags)).exit_code == 0
        assert (await asyncio.to_thread(check, alice))["policies"] == []
        async with relay_process(Site(alice), listen={"outgoing": free_address()}) as relay:
            [listener] = [address for name, address in relay.addresses.items() if name == "outgoing"]
            assert (await submit(listener, mails.plain())).code == 250
            [got] = await sink.messages(1)
        assert b"figures" not in got.message
        assert "downgraded" not in relay.log
        assert not (await asyncio.to_thread(run, alice, "--json", group="ledger show")).stdout.strip("[]\n")


async def test_nothing_is_sealed_for_a_peer_that_its_document_does_not_list(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities
) -> None:
    """The peer shares quantum keys, and the policy files are from before: the newer documents count for the next mail."""
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies={"default.toml": 'levels = ["aes", "pqc+aes", "pqc"]\notherwise = "refuse"\n'}, identities=identities,
    )  # fmt: skip
    pinned, key = site.directory / "peers" / "bob.json", identities.bob.identity.signing.private_key
    for levels, protection in ((("otp", "aes"), "aes"), (("pqc", "rsa"), "pqc"), ((), "")):
        fewer = replace(identities.bob.certificates, levels=levels)
        pinned.write_bytes(write_document(fewer, key))
        async with relay_process(site) as relay:
            reply = await submit(relay.addresses["outgoing"], mails.plain())
        assert reply.code == (250 if protection else 550), str(reply)
    events = [json.loads(line) for line in relay.log.splitlines()]  # those of all three
    assert [each["protection"] for each in events if each["event"] == "sealed_and_sent"] == ["aes", "pqc"]
    assert "cannot receive: its document says that it opens no sealed mail" in relay.log


@pytest.mark.usefixtures("without_the_end")
def test_check_names_levels_and_layers_that_no_peer_can_have(tmp_path: Path, identities: Identities) -> None:
    alice, bob = tmp_path / "alice", tmp_path / "bob"
    set_up(bob, identities.bob, "bob")
    path, _ = invited(bob)
    set_up(alice, identities.alice, "alice", "--peer", str(path), "--peer-domain", "bob.example")
    policy = alice / "policies/bob.example.toml"
    policy.write_text('levels = ["aes", "pqc+aes", "pqc"]\nrequire = "sealed"\n')
    aes, layer = check(alice)["policies"]
    assert aes.endswith(
        "bob.example.toml:1: aes cannot be had for peer bob, and is always passed over; leave it out, or fix the cause: "
        "peer 'bob' does not open level aes, by its document"
    )
    assert ":1: pqc+aes cannot be had for peer bob, and is always passed over" in layer


@pytest.mark.promise("Forged mail in a peer's name is marked from the day that the peer is taken in")
@pytest.mark.usefixtures("without_the_end")
def test_check_names_a_peer_of_whose_mail_nothing_is_required_until_that_is_said_to_be_meant(
    tmp_path: Path, identities: Identities
) -> None:
    bob = tmp_path / "bob"
    set_up(bob, identities.bob, "bob")
    path = tmp_path / "invitation"
    path.write_text(write_invitation(identities.alice.document))
    assert run(bob, str(path), "--yes", "--domain", "alice.example", group="identity accept").exit_code == 0
    policy = bob / "policies/alice.example.toml"
    assert check(bob)["policies"] == []
    before = policy.read_text()
    policy.write_text(before.partition("# What arrives")[0])
    [problem] = check(bob)["policies"]
    assert "forged mail in the name of alice.example arrives without a mark" in problem
    assert 'write require = "sealed" and unprotected = "mark" here' in problem
    policy.unlink()
    (bob / "policies/default.toml").write_text('levels = ["pqc"]\n')
    [problem] = check(bob)["policies"]
    assert f'write require = "sealed" and unprotected = "mark" into {policy}' in problem
    policy.write_text('levels = ["pqc"]\nrequire = "none"\n')
    assert check(bob)["policies"] == []


def test_setup_does_not_say_well_while_a_smarthosts_next_hop_is_dead(tmp_path: Path, identities: Identities) -> None:
    alice = tmp_path / "alice"
    dead = free_address()
    result = set_up(alice, identities.alice, "alice", *SENDS, str(dead))
    assert result.exit_code == 1, result.output
