"""`qumail-relay setup` and `identity accept`, by flags: what is written, what is left alone, and what is refused.
Standard: deploy/INSTALL.md; whatever an administrator has written is still there afterwards.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from relay.cli import cli
from relay.config import load_config
from relay.errors import ConfigError
from relay.identity import create_identity, lines_of, peer_document, write_invitation
from relay.kme import DevelopmentKMEs
from relay.kme.certificates import prepare
from relay.setup import questions
from relay.setup.answers import Answers, KMEAccess, SitePaths
from relay.setup.files import Owner, put
from relay.setup.relay_toml import relay_toml
from relay.setup.site import write_configuration
from tests.integration.setup.test_mail_server import texts
from tests.testlib import postfix
from tests.testlib.identities import Identities, Person
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postconf
from tests.testlib.terminal import Terminal


@pytest.fixture(autouse=True)
def without_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Test message and `check` are processes of their own, which test_two_sites.py has; a state directory of our own."""
    monkeypatch.setattr("relay.cli.setup._as_relay", lambda *_: True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("QUMAIL_RELAY_USER", "root")


@pytest.fixture
def home(tmp_path: Path, identities: Identities, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Alice's directory, with keys that were made before, since RSA takes seconds; no Postfix at the usual place."""
    monkeypatch.setattr(questions, "USUAL_POSTFIX", tmp_path / "postfix")
    state = tmp_path / "alice" / "state"
    state.mkdir(parents=True, mode=0o700)
    shutil.copytree(identities.alice.directory, state / "identity")
    return tmp_path / "alice"


BOBS, PEERS = ("--domain", "bob.example"), ("--peer-domain", "bob.example")
"""What is expected of Bob."""
USUAL = ("--yes", "--domain", "alice.example", "--kme", "development", "--postfix", "none")


def run(home: Path, *words: str, group: str = "setup", typed: str = "") -> Result:
    result = CliRunner().invoke(cli, [*group.split(), "--config", str(home / "relay.toml"), *words], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit | ConfigError):
        raise result.exception
    return result


def contents(directory: Path) -> Mapping[Path, tuple[int, bytes]]:
    """Every file, with its time and content."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.rglob("*") if path.is_file()}


def invitation(directory: Path, person: Person) -> str:
    path = directory / "invitation.txt"
    path.write_text(write_invitation(person.document))
    return str(path)


def words(person: Person) -> str:
    return " ".join(lines_of(person.identity.fingerprint))


def test_flags_make_a_whole_site(home: Path) -> None:
    result = run(home, *USUAL)
    assert result.exit_code == 0, result.output
    config = load_config(home / "relay.toml")
    assert config.site.name == "alice"
    assert config.site.sae_id == "2"
    assert [kme.url for kme in config.kmes.values()] == ["https://localhost:13000"]
    assert config.outgoing is not None
    assert str(config.outgoing.lmtp) == "127.0.0.1:15024"
    assert config.store.secret.exists()
    assert sorted(path.name for path in (home / "policies").iterdir()) == ["alice.example.toml"]


def test_without_a_kme_nobody_is_asked_under_what_name_it_knows_the_relay(home: Path) -> None:
    flags = ("--domain", "alice.example", "--postfix", "none")
    result = run(home, "--yes", *flags, "--kme", "none")
    assert result.exit_code == 0, result.output
    assert load_config(home / "relay.toml").site.sae_id == "sae-alice.example"
    (home / "relay.toml").unlink()
    typed = "\nnone\n\n\n"
    result = run(home, *flags, typed=typed)
    assert "SAE" not in result.output
    assert load_config(home / "relay.toml").site.sae_id == "sae-alice.example"
    assert load_config(home / "relay.toml").kmes == {}


@pytest.mark.parametrize(
    ("flags", "told"),
    [((), ("postmaster@alice.example",)), (("--postmaster", "ann@else.example"), ("ann@else.example",)),
     (("--postmaster", "none"), None)],
)  # fmt: skip
def test_somebody_is_told_of_alarms_and_the_relay_tells_how_it_is(
    home: Path, flags: tuple[str, ...], told: tuple[str, ...] | None
) -> None:
    result = run(home, *USUAL, *flags)
    config = load_config(home / "relay.toml")
    assert config.alarms.mail_to == told
    assert ("Alarms are mailed to" in result.output) == bool(told)
    assert config.status is not None
    assert str(config.status.listen) == "127.0.0.1:15029"


def test_nobody_else_can_read_anything(home: Path) -> None:
    run(home, *USUAL)
    for path in (home, *home.rglob("*")):
        forbidden = 0o077 if path != home else 0o022  # the test has made that one
        assert not stat.S_IMODE(path.stat().st_mode) & forbidden, path


def test_repeating_it_changes_nothing(home: Path) -> None:
    run(home, *USUAL)
    before = contents(home)
    again = run(home, "--yes", "--postfix", "none")
    assert again.exit_code == 0, again.output
    assert "used as it is" in again.output
    assert contents(home) == before


def test_what_an_administrator_has_edited_stays(home: Path) -> None:
    run(home, *USUAL)
    for name in ("relay.toml", "policies/alice.example.toml", "kme/ca.pem"):
        with (home / name).open("a") as file:
            file.write("# an edit\n")
    before = contents(home)
    assert run(home, "--yes", "--postfix", "none").exit_code == 0
    assert contents(home) == before


def test_the_same_answers_again_change_nothing(home: Path, tmp_path: Path, identities: Identities) -> None:
    bob = identities.bob
    flags = (*USUAL, "--everybody", "refuse", "--name", "alice", "--integration", "milter", "--sae-id", "2")
    peer = ("--peer", invitation(tmp_path, bob), "--words", words(bob), *PEERS)
    assert run(home, *flags, *peer).exit_code == 0
    before = contents(home)
    again = run(home, *flags, *peer)
    assert again.exit_code == 0, again.output
    assert contents(home) == before


@pytest.mark.parametrize(
    "other",
    [
        ("--domain", "alice.test"), ("--integration", "milter"), ("--name", "al"), ("--sae-id", "7"), ("--everybody", "clear"),
        ("--kme", "none"), ("--kme", "https://kme.example"), ("--port-base", "15120"), ("--kme-group", "g"),
    ],
    ids="=".join,
)  # fmt: skip
def test_another_answer_is_never_passed_over(home: Path, other: tuple[str, str]) -> None:
    run(home, *USUAL)
    before = contents(home)
    result = run(home, "--yes", "--postfix", "none", *other)
    assert result.exit_code == 2
    assert f"{other[0]} needs --replace" in " ".join(result.output.split())
    assert contents(home) == before


def test_what_is_no_domain_is_wrong_usage_also_where_a_site_is_there(home: Path) -> None:
    run(home, *USUAL)
    result = run(home, "--yes", "--postfix", "none", "--domain", "no domain")
    assert result.exit_code == 2
    assert "is not a mail domain" in result.output


def test_what_an_administrator_added_to_relay_toml_is_still_there_after_answering_anew(home: Path) -> None:
    run(home, *USUAL)
    text = (home / "relay.toml").read_text()
    trusted = '# as measured\nconnections = 77\ntrusted = [\n  "192.0.2.0/24", # [the] gateway\n]\n'
    text = text.replace("[outgoing]\n", f"[outgoing]\n{trusted}")
    mine = "\n# an hour is enough\n[quarantine]\nhold_for = 3600\n"
    (home / "relay.toml").write_text(text + mine)
    assert run(home, *USUAL, "--replace", "--integration", "milter").exit_code == 0
    config = load_config(home / "relay.toml")
    assert config.outgoing is not None
    assert (config.outgoing.connections, config.outgoing.lmtp) == (77, None)
    assert mine in (home / "relay.toml").read_text()
    assert trusted in (home / "relay.toml").read_text()
    before = contents(home)
    assert run(home, *USUAL, "--replace", "--integration", "milter").exit_code == 0
    assert contents(home) == before


def test_another_integration_asks_nothing_that_the_site_says_already(home: Path, tmp_path: Path) -> None:
    """Nothing is typed, and the integration alone is another one: a real KME's files would have to be found again."""
    other = ("--name", "al", "--everybody", "clear", "--postmaster", "root@alice.example", "--port-base", "15120")
    night = ("--postmaster", "night@elsewhere.example")
    assert run(home, *USUAL, *other, *night).exit_code == 0
    before = load_config(home / "relay.toml")
    result = run(home, "--replace", "--integration", "milter", "--postfix", "none")
    assert result.exit_code == 0, result.output
    after = load_config(home / "relay.toml")
    assert after.outgoing is not None
    assert str(after.outgoing.milter) == "127.0.0.1:15128"
    for name in ("site", "kmes", "policies", "store", "identity", "alarms", "status"):
        assert getattr(after, name) == getattr(before, name), name
    assert "kept, though" not in result.output


def test_what_cannot_stand_beside_the_new_answers_is_told_and_nothing_is_written(home: Path) -> None:
    run(home, *USUAL)
    with (home / "relay.toml").open("a") as file:
        file.write('\n[kmes.second]\nurl = "https://kme.example"\nnonsense = 1\n')
    before = contents(home)
    result = run(home, *USUAL, "--replace", "--integration", "milter")
    assert result.exit_code == 1
    assert "with what was added to it before" in str(result.exception)
    assert contents(home) == before


def test_answering_anew_keeps_what_was_there_beside_it(home: Path) -> None:
    run(home, *USUAL)
    (home / "relay.toml").write_text(before := (home / "relay.toml").read_text() + "# an edit\n")
    policy = (home / "policies/alice.example.toml").read_bytes()
    result = run(home, *USUAL, "--replace", "--domain", "alice.test", "--integration", "milter")
    assert result.exit_code == 0, result.output
    [copy] = home.glob("relay.toml.before-*")
    assert copy.read_text() == before
    assert not stat.S_IMODE(copy.stat().st_mode) & 0o077
    assert load_config(home / "relay.toml").site.domains == ("alice.example", "alice.test")
    assert (home / "policies/alice.example.toml").read_bytes() == policy


@pytest.mark.parametrize(("everybody", "level"), [("clear", "plaintext"), ("refuse", "pqc"), ("hold", None)])
def test_mail_for_everybody_else_is_as_answered(home: Path, everybody: str, level: str | None) -> None:
    run(home, *USUAL, "--everybody", everybody)
    default = home / "policies" / "default.toml"
    assert (f'["{level}"]' in default.read_text()) if level else not default.exists()
    assert run(home, "--offline", group="policy check").exit_code == 0
    said = " ".join(run(home, "--no-next-hops", group="check").output.split())
    assert ("mail that none of them covers is held" in said) == (everybody == "hold")


def test_an_answer_that_a_policy_file_contradicts_is_told(home: Path) -> None:
    """That file counts; an administrator who answered `hold` must not think that nothing leaves in clear."""
    run(home, *USUAL, "--everybody", "clear")
    result = run(home, *USUAL, "--replace", "--everybody", "hold")
    assert "policies/default.toml: kept, though it says something else" in result.output
    assert "plaintext" in (home / "policies/default.toml").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--kme", "https://kme.example"), "--kme needs --sae-id"),
        (("--kme", "https://kme.example", "--sae-id", "a"), "needs --kme-ca"),
        (("--kme", "none", "--integration", "smarthost"), "--next-hop belongs to --integration smarthost"),
        (("--kme", "none", "--next-hop", "mail"), "--next-hop belongs to"),
        (("--kme", "none", "--domain", "no domain"), "is not a mail domain"),
        (("--kme", "development", "--sae-id", "7"), "1 and 2, and no '7'"),
        ((), "--yes needs --kme"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_before_anything_is_written(
    home: Path, flags: tuple[str, ...], said: str
) -> None:
    result = run(home, "--yes", "--domain", "alice.example", "--postfix", "none", *flags)
    assert said in result.output + str(result.exception)
    assert result.exit_code != 0
    assert not (home / "relay.toml").exists()


def test_a_kme_of_ones_own_is_asked_for_and_its_files_are_copied(home: Path, tmp_path: Path) -> None:
    prepare(pem := tmp_path / "kme", "localhost")
    typed = (
        f"alice.example\nlater\nhttps://127.0.0.1:1/\nsae-alice\nnowhere\n{pem}/ca.pem\n{pem}/sae-2.pem\n"
        f"{pem}/sae-1.key\n{pem}/sae-2.key\nmilter\nclear\nnone\n"
    )
    result = run(home, typed=typed)
    assert result.exit_code == 0, result.output
    assert "nowhere: cannot be read" in result.output
    assert "Not so:" in result.output.split("Key file")[1]
    assert "WRONG  KME https://127.0.0.1:1: KMEUnreachable" in result.output
    config = load_config(home / "relay.toml")
    [kme] = config.kmes.values()
    assert (kme.url, config.site.sae_id) == ("https://127.0.0.1:1", "sae-alice")
    assert kme.key is not None
    assert kme.key.read_text() == (pem / "sae-2.key").read_text()
    assert config.outgoing is not None
    assert config.outgoing.milter is not None


def test_a_certificate_and_key_that_lie_alone_beside_the_ca_are_not_asked_for(home: Path, tmp_path: Path) -> None:
    prepare(made := tmp_path / "kme", "localhost")
    (pem := tmp_path / "from-the-kmes-operator").mkdir()
    for name, given in {"ca.pem": "root.crt", "sae-2.pem": "client.crt", "sae-2.key": "client.key"}.items():
        (pem / given).write_bytes((made / name).read_bytes())
    (pem / "README.pem").write_text("no certificate\n")
    typed = f"alice.example\nlater\nhttps://127.0.0.1:1/\nsae-alice\n{pem}/root.crt\nmilter\nclear\nnone\n"
    result = run(home, typed=typed)
    assert result.exit_code == 0, result.output
    assert "client.key" in result.output
    [kme] = load_config(home / "relay.toml").kmes.values()
    assert kme.key is not None
    assert kme.certificate is not None
    assert kme.key.read_text() == (made / "sae-2.key").read_text()
    assert kme.certificate.read_text() == (made / "sae-2.pem").read_text()


def test_a_key_that_is_not_the_certificates_is_refused_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    prepare(pem := tmp_path / "kme", "localhost")
    files = ("--kme-ca", f"{pem}/ca.pem", "--kme-certificate", f"{pem}/sae-2.pem", "--kme-key", f"{pem}/sae-1.key")
    flags = ("--kme", "https://localhost:1", "--sae-id", "2", *files)
    result = run(home, "--yes", "--domain", "alice.example", "--postfix", "none", *flags)
    assert result.exit_code == 1
    assert "sae-1.key" in str(result.exception)
    assert not (home / "relay.toml").exists()


@pytest.mark.parametrize("name", ["sae-2.pem", "sae-2.key", "text"])
def test_a_file_without_the_certificate_of_a_ca_is_none(home: Path, tmp_path: Path, name: str) -> None:
    prepare(pem := tmp_path / "kme", "localhost")
    (pem / "text").write_text("no certificate\n")
    typed = f"alice.example\nlater\nhttps://127.0.0.1:1/\nsae-alice\n{pem}/{name}\n{pem}/ca.pem\n{pem}/sae-2.pem\n"
    asked = run(home, typed=f"{typed}{pem}/sae-2.key\n\n\nnone\n")
    assert f"Not so: {pem}/{name}: " in asked.output
    assert asked.exit_code == 0, asked.output
    (home / "relay.toml").unlink()
    files = ("--kme-ca", f"{pem}/{name}", "--kme-certificate", f"{pem}/sae-2.pem", "--kme-key", f"{pem}/sae-2.key")
    flags = ("--kme", "https://localhost:1", "--sae-id", "2", *files)
    result = run(home, "--yes", "--domain", "alice.example", "--postfix", "none", *flags)
    assert (result.exit_code, f"{pem}/{name}" in str(result.exception)) == (1, True)
    assert not (home / "relay.toml").exists()


async def test_a_kme_that_takes_the_site_for_another_sae_is_refused_before_anything_is_written(
    home: Path, tmp_path: Path, identities: Identities, kmes: DevelopmentKMEs
) -> None:
    pem = kmes.state_dir
    files = ("--kme-ca", f"{pem}/ca.pem", "--kme-certificate", f"{pem}/sae-2.pem", "--kme-key", f"{pem}/sae-2.key")
    peer = ("--peer", invitation(tmp_path, identities.bob), *PEERS)
    flags = ("--yes", "--domain", "alice.example", "--postfix", "none", "--kme", kmes.urls[0], *files, *peer)
    wrong = await asyncio.to_thread(run, home, *flags, "--sae-id", "7")
    assert wrong.exit_code == 1
    assert "knows this relay as SAE '2', and [site] sae_id says '7'" in str(wrong.exception)
    assert not (home / "relay.toml").exists()
    right = await asyncio.to_thread(run, home, *flags, "--sae-id", "2")
    assert right.exit_code == 0, right.output
    assert f"ok     KME {kmes.urls[0]}" in right.output


@pytest.mark.parametrize("with_peer", [True, False])
async def test_another_sae_id_that_the_kme_does_not_know_us_by_replaces_nothing(
    home: Path, tmp_path: Path, identities: Identities, kmes: DevelopmentKMEs, with_peer: bool
) -> None:
    pem = kmes.state_dir
    files = ("--kme-ca", f"{pem}/ca.pem", "--kme-certificate", f"{pem}/sae-2.pem", "--kme-key", f"{pem}/sae-2.key")
    peer = ("--peer", invitation(tmp_path, identities.bob), *PEERS) if with_peer else ()
    flags = ("--yes", "--domain", "alice.example", "--postfix", "none", "--kme", kmes.urls[0], *files)
    assert (await asyncio.to_thread(run, home, *flags, *peer, "--sae-id", "2")).exit_code == 0
    before = contents(home)
    wrong = await asyncio.to_thread(run, home, "--replace", "--sae-id", "7", "--postfix", "none")
    assert wrong.exit_code == 1, wrong.output
    assert "SAE '2'" in str(wrong.exception)
    assert contents(home) == before
    same = await asyncio.to_thread(run, home, "--replace", "--sae-id", "2", "--postfix", "none")
    assert same.exit_code == 0, same.output


async def test_a_site_without_peers_has_its_kme_asked_by_check_and_development_keys_are_named(
    home: Path, kmes: DevelopmentKMEs
) -> None:
    pem = kmes.state_dir
    files = ("--kme-ca", f"{pem}/ca.pem", "--kme-certificate", f"{pem}/sae-2.pem", "--kme-key", f"{pem}/sae-2.key")
    flags = ("--yes", "--domain", "alice.example", "--postfix", "none", "--sae-id", "2", *files)
    await asyncio.to_thread(run, home, *flags, "--kme", kmes.urls[0])
    checked = await asyncio.to_thread(run, home, "--no-next-hops", group="check")
    assert checked.exit_code == 0, checked.output
    said = " ".join(checked.output.split())
    assert "knows this relay; no peer has its group 'default'" in said
    assert "NOTE KME kme gives DEVELOPMENT KEYS, NOT QUANTUM" in said
    await asyncio.to_thread(run, home, *flags, "--kme", "https://127.0.0.1:1", "--replace")
    checked = await asyncio.to_thread(run, home, "--no-next-hops", group="check")
    assert checked.exit_code == 1
    assert "WRONG  KME kme  KMEUnreachable" in checked.output


def test_postfix_stays_as_it_is_while_the_test_message_cannot_be_sealed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.cli.setup._as_relay", lambda _, *words: "--test" not in words)
    etc = tmp_path / "postfix"
    etc.mkdir()
    for name in ("main.cf", "master.cf"):
        (etc / name).write_text("")
    before = contents(etc)
    result = run(home, *USUAL[:-1], str(etc), "--apply")
    assert result.exit_code == 1
    assert "Postfix stays as it is. Fix that, then: qumail-relay setup" in result.output
    assert contents(etc) == before


@requires_postconf
def test_the_usual_postfix_is_not_asked_for_but_shown_and_changed_once_somebody_says_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(postfix.configure(tmp_path, ()))
    monkeypatch.setattr(questions, "USUAL_POSTFIX", tmp_path / "etc")
    before = texts(tmp_path / "etc")
    result = run(home, typed="alice.example\nlater\ndevelopment\ncontent-filter\nhold\nn\n")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert f"The Postfix beside the relay is that of {tmp_path / 'etc'}." in said
    assert "Change Postfix so?" in said
    assert texts(tmp_path / "etc") == before
    assert (
        f"MAIL GOES PAST THE RELAY, as before: {tmp_path / 'etc'} was not changed."
        in said.split("Change Postfix so?")[1]
    )


@requires_postconf
@pytest.mark.parametrize("well", [True, False])
def test_its_last_line_says_to_start_the_relay_that_postfix_hands_mail_to_now(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, well: bool
) -> None:
    monkeypatch.setattr("relay.cli.setup._as_relay", lambda _, *words: well or "check" not in words)
    asyncio.run(postfix.configure(tmp_path, ()))
    base = str(free_addresses(1)[0].port % 60_000 + 1020)
    result = run(home, *USUAL[:-1], str(tmp_path / "etc"), "--apply", "--port-base", base)
    assert result.exit_code == (0 if well else 1)
    last = " ".join(result.output.split("\n\n")[-1].split())
    first = "" if well else "Fix what is wrong above. "
    assert last.startswith(f"{first}NOW START THE RELAY. Until then mail waits")
    assert result.output.endswith(f"\n  qumail-relay serve --config {home}/relay.toml\n"), "in one line, to be copied"
    (home / "state" / "alarms.json").write_text("{}")  # as of a relay that serves by what relay.toml said before
    again = run(home, *USUAL[:-1], str(tmp_path / "etc"), "--apply", "--port-base", base)
    assert f"{first}NOW RESTART THE RELAY (end it first). Until" in " ".join(again.output.split())


@requires_postconf
def test_another_integration_that_postfix_is_not_changed_for_leaves_relay_toml_as_it_was(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next restart of the relay would stop all mail, and mail in the queue would go to a port that is gone."""
    monkeypatch.setattr("relay.cli.setup._as_relay", lambda *_: True)
    asyncio.run(postfix.configure(tmp_path, ()))
    assert run(home, *USUAL[:-1], str(tmp_path / "etc"), "--apply").exit_code == 0
    before, etc = (home / "relay.toml").read_bytes(), texts(tmp_path / "etc")
    result = run(home, "--replace", "--yes", "--integration", "milter", "--postfix", str(tmp_path / "etc"))
    assert f"{home}/relay.toml: as it was before, since {tmp_path}/etc was not changed" in result.output
    assert ((home / "relay.toml").read_bytes(), texts(tmp_path / "etc")) == (before, etc)
    assert run(home, "--replace", "--yes", "--integration", "milter", "--postfix", "none").exit_code == 0
    assert (home / "relay.toml").read_bytes() != before, "by hand"
    assert "POSTFIX WAS NOT CHANGED" in run(home, "--yes", "--postfix", str(tmp_path / "etc")).output


@requires_postconf
def test_a_postfix_with_which_the_relay_cannot_stand_in_a_row_has_nothing_written(home: Path, tmp_path: Path) -> None:
    asyncio.run(postfix.configure(tmp_path, (), settings={"content_filter": "smtp-amavis:[127.0.0.1]:10024"}))
    result = run(home, *USUAL[:-1], str(tmp_path / "etc"), "--apply", "--integration", "milter")
    assert result.exit_code == 1
    assert "take --integration content-filter" in " ".join(result.output.split())
    assert not (home / "relay.toml").exists()
    assert not (home / "policies").exists()


@requires_postconf
def test_undo_says_of_each_change_whether_mail_leaves_in_clear_now(home: Path, tmp_path: Path) -> None:
    asyncio.run(postfix.configure(tmp_path, ()))
    before = texts(etc := tmp_path / "etc")
    flags = (*USUAL[:-1], str(etc), "--apply")
    assert run(home, *flags).exit_code == 0
    assert run(home, *flags, "--replace", "--integration", "milter").exit_code == 0
    first, second = run(home, "--undo").output, run(home, "--undo").output
    assert "Still in force: 1 earlier change" in first
    assert "LEAVES IN CLEAR" not in first
    assert "NO MAIL GOES THROUGH: Postfix is back at an earlier integration, and relay.toml is for milter" in first
    assert "NO MAIL GOES THROUGH" not in second
    assert "MAIL LEAVES IN CLEAR from now on" in second
    assert texts(etc) == before


def test_what_check_finds_wrong_at_the_end_is_the_exit_status(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.cli.setup._as_relay", lambda _, *words: "check" not in words)
    assert run(home, *USUAL).exit_code == 1
    assert run(home, "--yes", "--postfix", "none").exit_code == 0, "what it finds of an older site is shown alone"


def test_its_questions_fit_a_terminal_of_80_columns(home: Path) -> None:
    result = run(home, typed="alice.example\nlater\ndevelopment\nsmarthost\n127.0.0.1:25\nhold\nnone\n")
    assert result.exit_code == 0, result.output
    asked = [line for line in result.output.splitlines() if str(home) not in line]
    assert "smarthost: this host only sends" in " ".join(asked)
    assert max(map(len, asked)) <= 80


@pytest.mark.parametrize("words", [["--yes", "--kme", "none"], ["--undo"]])
def test_whoever_may_not_read_the_configuration_is_told_so_in_one_line(tmp_path: Path, words: list[str]) -> None:
    if os.geteuid():
        pytest.skip("becoming another user needs root")
    become = (
        "import os, relay.cli, relay.cli.setup; os.setgroups([]); os.setgid(65534); os.setuid(65534); relay.cli.main()"
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "etc").mkdir(mode=0o700)
        done = subprocess.run(
            [sys.executable, "-c", become, "setup", "--config", str(directory / "etc/relay.toml"), *words],
            capture_output=True, text=True, check=False, cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert f"{directory}/etc" in done.stderr
    assert "root" in done.stderr


def test_a_peer_is_taken_in_with_what_both_sites_share(home: Path, tmp_path: Path, identities: Identities) -> None:
    bob = identities.bob
    result = run(home, *USUAL, "--peer", invitation(tmp_path, bob), "--words", words(bob), *PEERS)
    assert result.exit_code == 0, result.output
    config = load_config(home / "relay.toml")
    assert [kme.group for kme in config.kmes.values()] == ["alice-bob"]
    assert config.site.sae_id == "2"
    assert (home / "state/peers/bob.json").read_bytes() == bob.document
    policy = (home / "policies/bob.example.toml").read_text()
    assert 'levels    = ["aes"]' in policy
    assert 'hold_for  = "2 d"' in policy, "else its sender hears of mail without keys after five days"


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
    typed = f"alice.example\n{invitation(tmp_path, identities.bob)}\ndevelopment\n\n\nn\nnone\n"
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
    assert 'levels    = ["pqc"]' in (home / "policies/bob.example.toml").read_text()
    checked = run(home, group="check")
    assert checked.exit_code == 1
    assert "WRONG  peer bob  no KME group is shared with it, so that NO QUANTUM KEYS are used" in checked.output
    status = run(home, group="keys status")
    assert status.exit_code == 1
    assert "NO QUANTUM KEYS" in status.output


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


def test_where_root_sets_up_for_another_the_configuration_is_roots_and_the_state_is_theirs(tmp_path: Path) -> None:
    owner = Owner(65534, 65534)
    if not owner.is_another:
        pytest.skip("needs root")
    answers = Answers("a", ("a.example",), "1", None)
    write_configuration(answers, SitePaths(tmp_path / "a" / "relay.toml", tmp_path / "s"), owner)
    for path in (tmp_path / "a", *(tmp_path / "a").rglob("*")):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (0, 65534)
        assert stat.S_IMODE(found.st_mode) == (0o750 if path.is_dir() else 0o640)


def test_what_is_written_can_be_read_whatever_the_names_are(tmp_path: Path) -> None:
    places = SitePaths(tmp_path / "relay.toml", tmp_path / 'with "quotes" \\ and é')
    kme = KMEAccess("https://k", tmp_path, tmp_path, tmp_path, 'gr"oup')
    answers = Answers('na"me\\', ("bücher.example",), "sae\t1", kme)
    (tmp_path / "relay.toml").write_text(relay_toml(answers, places))
    config = load_config(tmp_path / "relay.toml")
    assert (config.site.name, config.site.sae_id) == ('na"me\\', "sae\t1")
    assert config.store.database == places.state / "relay.db"
    assert config.kmes["kme"].group == 'gr"oup'


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        put(path, b"after", Owner.myself(), replace=True)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"before"


def _why_not_as_nobody() -> str:
    if os.geteuid():
        return "giving files to another user needs root"
    try:
        subprocess.run([sys.executable, "-c", ""], user="nobody", check=True)
    except PermissionError:
        return f"another user cannot run {sys.executable}"
    return ""


@pytest.mark.skipif(bool(_why_not_as_nobody()), reason=_why_not_as_nobody() or "another user can run it")
def test_keys_and_secret_belong_to_the_relays_user_who_can_serve_with_them(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = Owner.named("nobody")
    monkeypatch.undo()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)  # pytest's directories are root's alone
        shutil.copytree(identities.alice.directory, directory / "alice/state/identity")
        for path in (directory / "alice/state", *(directory / "alice/state").rglob("*")):
            os.chown(path, nobody.uid, nobody.gid)
        (directory / "alice").chmod(0o755)
        (directory / "alice/state").chmod(0o700)
        done = subprocess.run(
            [sys.executable, "-m", "relay", "setup", "--config", str(directory / "alice/relay.toml"), "--user", "nobody",
             "--yes", "--domain", "alice.example", "--kme", "none", "--postfix", "none"],
            env={**os.environ, "XDG_STATE_HOME": str(directory / "xdg"), "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ok     to alice.example: goes on as policy says: plaintext" in done.stdout
        assert "ok     store secret" in done.stdout
        for path in (directory / "alice/state").rglob("*"):
            assert path.stat().st_uid == nobody.uid, path
        assert (directory / "alice/relay.toml").stat().st_uid == 0
