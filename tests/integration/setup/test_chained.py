"""What a Postfix had before setup: scanners and other filters stay, in a row with the relay, or setup says what to do.
Standard: amavisd-new as Debian's README.postfix has it, rspamd and OpenDKIM as their documents have them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from relay import postfix as checked
from relay.config import Config
from relay.errors import ConfigError
from relay.setup.answers import Integration
from relay.setup.backups import BACKUP
from relay.setup.mail_server import apply, planned_change, undo
from tests.integration.setup.test_integrations import in_force, set_up
from tests.integration.setup.test_mail_server import site, texts
from tests.testlib import postfix
from tests.testlib.postfix import FRAGMENTS, requires_postconf, run

pytestmark = requires_postconf

RETURN = """
postconf -M 'smtp-amavis/unix=smtp-amavis unix - - n - 2 smtp -o smtp_send_xforward_command=yes'
postconf -M '127.0.0.1:10025/inet=127.0.0.1:10025 inet n - n - - smtpd -o content_filter= -o smtpd_milters= \
-o mynetworks=127.0.0.0/8 -o receive_override_options=no_header_body_checks,no_unknown_recipient_checks,no_milters'
"""
AMAVISD, RSPAMD, OPENDKIM = "smtp-amavis:[127.0.0.1]:10024", "inet:localhost:11332", "unix:opendkim/opendkim.sock"
EVERYWHERE = f"{RETURN}postconf -e 'content_filter = {AMAVISD}'"
FROM_OUTSIDE = f"{RETURN}postconf -P 'smtp/inet/content_filter={AMAVISD}'"
NO_RETURN = f"postconf -M 'smtp-amavis/unix=smtp-amavis unix - - n - 2 smtp'; postconf -e 'content_filter = {AMAVISD}'"
RELAY, OPENED = "qumail:[127.0.0.1]:15024", "127.0.0.1:15036/inet"


async def beside(tmp_path: Path, commands: str, integration: Integration = "content-filter") -> tuple[Path, Config]:
    """A Postfix that had something, and a site beside it; where Postfix is configured."""
    await postfix.configure(tmp_path, ())
    await postfix.change(tmp_path, commands)
    return tmp_path / "etc", site(tmp_path, integration)


async def value(etc: Path, name: str, service: str = "") -> str:
    words = ("-Ph", f"{service}/{name}") if service else ("-h", name)
    return (await run("postconf", "-c", str(etc), *words)).strip()


@pytest.mark.parametrize("before", [EVERYWHERE, FROM_OUTSIDE], ids=["everywhere", "from outside"])
async def test_amavisd_reads_opened_mail_and_what_it_hands_back_goes_to_the_relay(tmp_path: Path, before: str) -> None:
    etc, config = await beside(tmp_path, before)
    kept = texts(etc)
    await set_up(etc, tmp_path, config)
    everywhere = before == EVERYWHERE
    assert await value(etc, "content_filter") == (AMAVISD if everywhere else RELAY)
    assert await value(etc, "content_filter", "127.0.0.1:10025/inet") == RELAY
    assert await value(etc, "content_filter", "smtp/inet") == "qumail:[127.0.0.1]:15034"
    own = f"{OPENED}/content_filter = {AMAVISD}"
    assert (own in await in_force(etc)) != everywhere, "else it has that of main.cf"
    assert (await checked.judge_all(etc, config)).faults == ()
    assert not (await planned_change(etc, config, beside=tmp_path)).differs
    shutil.copytree(tmp_path / BACKUP, tmp_path / "aside")
    shutil.rmtree(tmp_path / BACKUP)
    assert not (await planned_change(etc, config, beside=tmp_path)).differs
    shutil.move(tmp_path / "aside", tmp_path / BACKUP)
    undo(tmp_path)
    assert texts(etc) == kept


@pytest.mark.parametrize("before", ["", EVERYWHERE, FROM_OUTSIDE], ids=["none", "everywhere", "from outside"])
async def test_what_takes_the_content_filters_out_by_hand_leaves_those_of_others_in(
    tmp_path: Path, before: str
) -> None:
    etc, config = await beside(tmp_path, before)
    await set_up(etc, tmp_path, config)
    document = (FRAGMENTS.parent / "SCANNERS.md").read_text().split("## Without the relay again")[1]
    commands = document.split("```sh\n")[1].split("```")[0].split("postfix stop")[0]
    await postfix.change(tmp_path, commands)
    assert [line for line in await in_force(etc) if "content_filter = qumail:" in line] == []
    assert await value(etc, "content_filter") == (AMAVISD if before == EVERYWHERE else "")
    if before:
        assert await value(etc, "content_filter", "127.0.0.1:10025/inet") == "", "else what it hands back goes round"
    if before == FROM_OUTSIDE:
        assert await value(etc, "content_filter", OPENED) == AMAVISD


async def test_without_the_relay_amavisd_is_as_it_was(tmp_path: Path) -> None:
    etc, config = await beside(tmp_path, EVERYWHERE)
    before = await in_force(etc)
    await set_up(etc, tmp_path, config)
    await set_up(etc, tmp_path, site(tmp_path, "smarthost"))
    now = await in_force(etc)
    assert [line for line in before if line not in now] == []


async def test_milters_that_read_stand_where_mail_is_open(tmp_path: Path) -> None:
    milters = f"postconf -e 'smtpd_milters = {OPENDKIM}, {RSPAMD}' 'non_smtpd_milters = {RSPAMD}'"
    etc, config = await beside(tmp_path, milters, "milter")
    await set_up(etc, tmp_path, config)
    assert await value(etc, "smtpd_milters") == f"inet:127.0.0.1:15038, {RSPAMD}, inet:127.0.0.1:15028, {OPENDKIM}"
    assert await value(etc, "non_smtpd_milters") == f"{RSPAMD}, inet:127.0.0.1:15028"
    assert await value(etc, "smtpd_milters", OPENED) == f"{RSPAMD}, inet:127.0.0.1:15028, {OPENDKIM}"
    assert (await checked.judge_all(etc, config)).faults == ()
    assert not (await planned_change(etc, config, beside=tmp_path)).differs
    config = site(tmp_path)
    apply(await planned_change(etc, config, beside=tmp_path), tmp_path)
    assert await value(etc, "smtpd_milters") == f"{OPENDKIM}, {RSPAMD}"
    assert await value(etc, "smtpd_milters", OPENED) == RSPAMD
    assert {fault.code for fault in (await checked.judge_all(etc, config)).faults} == {"dkim-before-filter"}


@pytest.mark.parametrize("integration", ["content-filter", "milter"])
async def test_a_socket_in_the_chroot_of_port_25_is_found_from_where_opened_mail_comes_back(
    tmp_path: Path, integration: Integration
) -> None:
    spamass = "postconf -F smtp/inet/chroot=y; postconf -e smtpd_milters=unix:/spamass/spamass.sock"
    etc, config = await beside(tmp_path, spamass, integration)
    await set_up(etc, tmp_path, config)
    assert (await run("postconf", "-c", str(etc), "-Fh", f"{OPENED}/chroot")).strip() == "y"
    assert not (await planned_change(etc, config, beside=tmp_path)).differs
    shutil.rmtree(tmp_path / BACKUP)
    assert not (await planned_change(etc, config, beside=tmp_path)).differs


async def test_a_proxy_that_reads_what_users_submit_stays_and_hands_on_to_the_relay(tmp_path: Path) -> None:
    proxy = f"{RETURN}postconf -P submission/inet/smtpd_proxy_filter=127.0.0.1:10024"
    etc, config = await beside(tmp_path, proxy)
    await set_up(etc, tmp_path, config)
    assert await value(etc, "smtpd_proxy_filter", "submission/inet") == "127.0.0.1:10024"
    assert await value(etc, "content_filter", "127.0.0.1:10025/inet") == RELAY


@pytest.mark.parametrize(
    ("integration", "commands", "said"),
    [
        ("milter", EVERYWHERE, "take --integration content-filter"),
        ("milter", "postconf -e always_bcc=archive@alice.example", "always_bcc = archive@alice.example: with the relay"),
        ("content-filter", "postconf -e 'content_filter = smtp-amavis:[192.0.2.1]:10024'", "setup cannot see where"),
        ("content-filter", NO_RETURN, "no smtpd service on loopback"),
        ("content-filter", "postconf -P smtp/inet/smtpd_proxy_filter=127.0.0.1:10024", "reads mail before the relay"),
        ("milter", "postconf -P submission/inet/smtpd_proxy_filter=127.0.0.1:10024", "milters see no content there"),
        ("smarthost", "postconf -e 'relayhost = [mail.isp.example]:587'", "--next-hop mail.isp.example:587"),
    ],
)  # fmt: skip
async def test_what_cannot_stand_in_a_row_is_told_and_nothing_is_changed(
    tmp_path: Path, integration: Integration, commands: str, said: str
) -> None:
    etc, config = await beside(tmp_path, commands, integration)
    with pytest.raises(ConfigError) as caught:
        await planned_change(etc, config, beside=tmp_path)
    assert said in str(caught.value)
    assert "Postfix was not changed" in str(caught.value)
