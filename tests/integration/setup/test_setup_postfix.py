"""`qumail-relay setup` beside a Postfix: when that is changed, when not, and what is said of it.
Standard: deploy/INSTALL.md; whatever an administrator has written is still there afterwards.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.config import load_config
from relay.setup import questions
from tests.integration.setup.answered import PEERS, USUAL, contents, invitation, run
from tests.integration.setup.test_mail_server import texts
from tests.testlib import postfix
from tests.testlib.identities import Identities
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postconf

pytestmark = pytest.mark.usefixtures("without_the_end")


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
def test_a_postfix_that_has_lost_its_filter_gets_it_back_though_the_test_message_cannot_be_sealed_now(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(postfix.configure(tmp_path, ()))
    etc = tmp_path / "etc"
    assert run(home, *USUAL[:-1], str(etc), "--apply").exit_code == 0
    (etc / "main.cf").write_text((etc / "main.cf").read_text().replace("content_filter", "#content_filter"))
    monkeypatch.setattr("relay.cli.setup._as_relay", lambda _, *words: "--test" not in words)
    result = run(home, "--yes", "--apply")
    assert result.exit_code == 1, "that no mail can be sealed is still wrong"
    assert "put beside the relay nevertheless" in result.output
    assert any(line.startswith("content_filter") for line in (etc / "main.cf").read_text().splitlines())


def test_a_peer_whose_policy_is_plaintext_is_named_and_keeps_nobody_elses_mail_from_the_relay(
    home: Path, tmp_path: Path, identities: Identities
) -> None:
    peer = ("--peer", invitation(tmp_path, identities.bob), *PEERS)
    assert run(home, "--yes", "--domain", "alice.example", "--kme", "none", "--postfix", "none", *peer).exit_code == 0
    sealed = run(home, "--test")
    assert "to bob.example (peer bob): sealed: pqc" in sealed.output
    (home / "policies" / "bob.example.toml").write_text('levels = ["plaintext"]\nreason = "for now"\n')
    in_clear = run(home, "--test")
    assert in_clear.exit_code == 0, in_clear.output
    assert f"to bob.example (peer bob): leaves IN CLEAR: {home}/policies/bob.example.toml:1" in in_clear.output


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


@requires_postconf
def test_which_postfix_it_changed_is_remembered_in_relay_toml(home: Path, tmp_path: Path) -> None:
    asyncio.run(postfix.configure(tmp_path, ()))
    etc = tmp_path / "etc"
    assert run(home, *USUAL[:-1], str(etc), "--apply").exit_code == 0
    assert f'[postfix]\ndirectory = "{etc}"\n' in (home / "relay.toml").read_text()
    again = run(home, "--yes")
    assert f"{etc}: there already, nothing to change" in again.output
    (etc / "main.cf").write_text((etc / "main.cf").read_text().replace("content_filter", "#content_filter"))
    shown = run(home, "--yes", "--replace").output
    assert f"+++ {etc}/main.cf (after)" in shown
    other = run(home, "--yes", "--postfix", "/etc/postfix")
    assert "--postfix needs --replace" in other.output


@requires_postconf
def test_a_relay_toml_of_before_that_named_none_gets_the_postfix_that_setup_has_changed(
    home: Path, tmp_path: Path
) -> None:
    asyncio.run(postfix.configure(tmp_path, ()))
    etc, file = tmp_path / "etc", home / "relay.toml"
    assert run(home, *USUAL[:-1], str(etc), "--apply").exit_code == 0
    named = file.read_text()
    file.write_text(named.split("\n# The Postfix beside")[0])
    assert load_config(file).postfix is None
    result = run(home, "--yes")
    assert f"{file}: names {etc} now, which is watched from the relay's next restart" in result.output
    assert file.read_text() == named
    file.write_text(named.split("\n# The Postfix beside")[0])
    assert run(home, "--yes", "--replace").exit_code == 0
    assert file.read_text() == named


def test_where_none_is_beside_the_relay_none_is_named_and_the_same_answers_again_name_none(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(home, *USUAL).exit_code == 0
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "main.cf").touch()
    monkeypatch.setattr(questions, "USUAL_POSTFIX", tmp_path / "usual")
    again = run(home, "--yes", "--replace")
    assert again.exit_code == 0
    assert "usual" not in again.output
    assert load_config(home / "relay.toml").postfix is None
