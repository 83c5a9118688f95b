"""`qumail-relay setup` by flags: what is written, what is left alone, and what is refused.
Standard: deploy/INSTALL.md; whatever an administrator has written is still there afterwards.
"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from relay.config import load_config
from tests.integration.setup.answered import PEERS, USUAL, contents, invitation, run, words
from tests.testlib.identities import Identities

pytestmark = pytest.mark.usefixtures("without_the_end")


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


@pytest.mark.parametrize("integration", ["content-filter", "milter", "smarthost"])
def test_the_usual_ports_are_another_answer_as_well_and_are_kept_where_nobody_names_any(
    home: Path, integration: str
) -> None:
    hop = ("--next-hop", "mail.example:25") if integration == "smarthost" else ()
    run(home, *USUAL, "--integration", integration, *hop, "--port-base", "15120")
    again = run(home, "--yes", "--postfix", "none", "--port-base", "15020")
    assert "--port-base needs --replace" in " ".join(again.output.split())
    kept = run(home, "--yes", "--postfix", "none", "--replace", "--name", "al")
    assert kept.exit_code == 0, kept.output
    assert "127.0.0.1:1512" in (home / "relay.toml").read_text()
    assert run(home, "--yes", "--postfix", "none", "--replace", "--port-base", "15020").exit_code == 0
    assert "127.0.0.1:1512" not in (home / "relay.toml").read_text()
    assert "127.0.0.1:1502" in (home / "relay.toml").read_text()


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
    assert run(home, group="policy check").exit_code == 0
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
