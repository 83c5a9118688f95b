"""What `setup` does to a Postfix, and how it is taken back: on a copy first, with a backup, and never over an edit.
Standard: deploy/postfix as it stands; Postfix's own postconf reads and writes, `check --postfix` finds nothing after it.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from relay import postfix as checked
from relay.config import Config, load_config
from relay.errors import ConfigError
from relay.setup import mail_server
from relay.setup.answers import Answers, Integration, SitePaths
from relay.setup.files import write_flushed
from relay.setup.mail_server import apply, planned_change, undo
from relay.setup.postfix_lines import FILES
from relay.setup.relay_toml import relay_toml
from tests.testlib import postfix
from tests.testlib.postfix import requires_postconf

pytestmark = requires_postconf


@pytest.fixture
async def etc(tmp_path: Path) -> Path:
    """A Postfix as it is before."""
    await postfix.configure(tmp_path, ())
    return tmp_path / "etc"


def site(tmp_path: Path, integration: Integration = "content-filter", base: int = 15020) -> Config:
    next_hop = "mail.alice.example:25" if integration == "smarthost" else ""
    answers = Answers("alice", ("alice.example",), "2", None, integration, next_hop=next_hop, port_base=base)
    path = tmp_path / "relay.toml"
    path.write_text(relay_toml(answers, SitePaths(path, tmp_path / "state")))
    return load_config(path)


def texts(etc: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in etc.iterdir()}


@pytest.mark.parametrize("integration", ["content-filter", "milter", "smarthost"])
async def test_afterwards_check_finds_nothing_and_undo_puts_back_every_octet(
    etc: Path, tmp_path: Path, integration: Integration
) -> None:
    config, before = site(tmp_path, integration), texts(etc)
    change = await planned_change(etc, config)
    assert texts(etc) == before
    assert change.differs
    assert change.faults == ()
    apply(change, tmp_path)
    assert (await checked.judge_all(etc, config)).faults == ()
    assert not (await planned_change(etc, config)).differs
    assert undo(tmp_path) == etc
    assert texts(etc) == before
    with pytest.raises(ConfigError, match="no change of Postfix to undo"):
        undo(tmp_path)


async def test_other_ports_and_another_service_are_those_of_the_site(tmp_path: Path) -> None:
    await postfix.configure(tmp_path, (), smtp="192.0.2.1:25", submission="192.0.2.1:587")
    change = await planned_change(tmp_path / "etc", site(tmp_path, base=20000))
    main, master = (change.after[name].decode() for name in FILES)
    assert "content_filter = qumail:[127.0.0.1]:20004" in main
    assert "127.0.0.1:20006" in master
    assert "127.0.0.1:20016" in master
    assert "-o content_filter=qumail:[127.0.0.1]:20014" in master
    assert "1502" not in main + master.split("127.0.0.1:20006")[1]


async def test_where_mail_arrives_has_to_be_said_where_it_is_not_clear(tmp_path: Path) -> None:
    await postfix.configure(tmp_path, (), smtp="192.0.2.1:25")
    with (tmp_path / "etc" / "master.cf").open("a") as file:
        file.write("192.0.2.2:25 inet n - n - - smtpd\n")
    config = site(tmp_path)
    with pytest.raises(ConfigError, match="--postfix-service"):
        await planned_change(tmp_path / "etc", config)
    change = await planned_change(tmp_path / "etc", config, service="192.0.2.2:25/inet")
    assert change.differs


async def test_an_edit_after_setup_is_never_lost(etc: Path, tmp_path: Path) -> None:
    apply(await planned_change(etc, site(tmp_path)), tmp_path)
    with (etc / "main.cf").open("a") as file:
        file.write("# mine\n")
    edited = texts(etc)
    with pytest.raises(ConfigError) as caught:
        undo(tmp_path)
    assert "+# mine" in str(caught.value)
    assert "nothing was undone" in str(caught.value)
    assert texts(etc) == edited


async def test_what_is_kept_of_another_machines_postfix_is_never_put_here(
    etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.setup.backups.MACHINE_ID", tmp_path / "machine-id")
    (tmp_path / "machine-id").write_text("1" * 32)
    before = texts(etc)
    apply(await planned_change(etc, site(tmp_path)), tmp_path)
    (tmp_path / "machine-id").write_text("2" * 32)
    for name, text in before.items():
        (etc / name).write_text(f"# of the new machine\n{text}")
    fresh = texts(etc)
    with pytest.raises(ConfigError, match=r"another machine's Postfix.*take the relay's content filters out"):
        undo(tmp_path)
    assert texts(etc) == fresh
    apply(await planned_change(etc, site(tmp_path)), tmp_path)
    undo(tmp_path)
    assert texts(etc) == fresh


async def test_a_fresh_postfix_beside_a_restored_relay_is_said_to_let_mail_out_in_clear(
    etc: Path, tmp_path: Path
) -> None:
    said = "\n".join(map(str, (await checked.judge_all(etc, site(tmp_path))).faults))
    assert "mail LEAVES IN CLEAR past the relay" in said
    assert "qumail-relay setup" in said


async def test_an_edit_between_looking_and_applying_is_never_lost(etc: Path, tmp_path: Path) -> None:
    change = await planned_change(etc, site(tmp_path))
    with (etc / "main.cf").open("a") as file:
        file.write("# mine\n")
    edited = texts(etc)
    with pytest.raises(ConfigError, match="edited meanwhile"):
        apply(change, tmp_path)
    assert texts(etc) == edited


@pytest.mark.parametrize("writes", [1, 5, 8])
async def test_a_kill_at_any_write_can_be_undone_or_has_changed_nothing(
    etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    before = texts(etc)
    change = await planned_change(etc, site(tmp_path))
    written = 0

    def dies(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
        nonlocal written
        written += 1
        if written == writes:
            raise KeyboardInterrupt
        path.write_bytes(content)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt) if writes < 8 else nullcontext():
        patched.setattr(mail_server, "write_flushed", dies)
        apply(change, tmp_path)
    if texts(etc) != before:
        undo(tmp_path)
    assert texts(etc) == before


async def test_two_changes_are_undone_one_after_the_other(etc: Path, tmp_path: Path) -> None:
    first = texts(etc)
    apply(await planned_change(etc, site(tmp_path)), tmp_path)
    second = texts(etc)
    apply(await planned_change(etc, site(tmp_path, base=20000)), tmp_path)
    undo(tmp_path)
    assert texts(etc) == second
    undo(tmp_path)
    assert texts(etc) == first


async def test_owner_and_mode_of_postfixs_files_stay(etc: Path, tmp_path: Path) -> None:
    (etc / "main.cf").chmod(0o640)
    apply(await planned_change(etc, site(tmp_path)), tmp_path)
    assert (etc / "main.cf").stat().st_mode & 0o777 == 0o640


async def test_a_directory_without_postfix_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is Postfix configured there"):
        await planned_change(tmp_path / "nowhere", site(tmp_path))


async def test_a_full_disk_half_way_is_told_and_undone(
    etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = texts(etc)
    change = await planned_change(etc, site(tmp_path))
    real = write_flushed

    def full(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
        if path == etc / "master.cf":
            raise OSError(28, "No space left on device", str(path))
        real(path, content, mode, owner)

    with monkeypatch.context() as patched, pytest.raises(ConfigError, match="setup --undo"):
        patched.setattr(mail_server, "write_flushed", full)
        apply(change, tmp_path)
    assert texts(etc) != before
    undo(tmp_path)
    assert texts(etc) == before
