"""The files in deploy/ that stand beside Postfix: applied as they say, they are accepted without a warning.
Standard: postconf(1) and postfix(1) of the installed Postfix, systemd-analyze(1) of the installed systemd.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from relay.config import Address, load_config
from tests.testlib import postfix
from tests.testlib.postfix import FRAGMENTS, requires_postfix

DEPLOY = FRAGMENTS.parent
BOTH = ("outgoing-content-filter", "incoming-content-filter")


@requires_postfix
@pytest.mark.parametrize("fragments", [*((name,) for name in (*BOTH, "smarthost")), BOTH], ids="+".join)
async def test_postfix_accepts_the_settings_without_a_warning(fragments: tuple[str, ...]) -> None:
    smtp, *free = postfix.free_addresses(5)
    ports = dict(zip((10025, 10026, 10035, 10036), free, strict=True))
    async with postfix.made(
        smtp=smtp, fragments=fragments, ports=ports, settings={"myhostname": "mail.alice.example"}
    ) as made:
        await made.command("postfix", "check")
        assert made.log == ""
        for way_to_print in ("-n", "-M", "-P"):
            assert "warning" not in await made.command("postconf", way_to_print)


@requires_postfix
async def test_postfix_with_both_filters_opens_what_arrives_and_lets_the_outgoing_relay_decide_on_everything() -> None:
    smtp, *free = postfix.free_addresses(5)
    ports = dict(zip((10025, 10026, 10035, 10036), free, strict=True))
    async with postfix.made(smtp=smtp, fragments=BOTH, ports=ports, settings={}) as made:
        filters = {
            line.split("/")[0]: line.partition("= ")[2]
            for line in (await made.command("postconf", "-P", "*/inet/content_filter")).splitlines()
        }
        assert filters == {str(smtp): f"qumail:[127.0.0.1]:{ports[10035].port}", str(ports[10026]): ""}
        everything_else = await made.command("postconf", "-h", "content_filter")
        assert everything_else.strip() == f"qumail:[127.0.0.1]:{ports[10025].port}"


def test_the_ports_are_those_of_relay_toml() -> None:
    config = load_config(DEPLOY / "relay.toml")
    assert config.outgoing
    assert config.incoming
    for directory, direction in zip(BOTH, (config.outgoing, config.incoming), strict=True):
        main, master = ((FRAGMENTS / directory / name).read_text() for name in ("main.cf", "master.cf"))
        assert f"qumail:[{direction.listen.host}]:{direction.listen.port}" in main
        assert re.search(rf"^{re.escape(str(direction.next_hop))} inet ", master, re.MULTILINE)
    assert f"relayhost = [127.0.0.1]:{config.outgoing.listen.port}" in (FRAGMENTS / "smarthost" / "main.cf").read_text()
    assert config.outgoing.listen == Address("127.0.0.1", 10025)


def test_a_sealed_mail_of_the_largest_size_is_not_too_large_for_postfix() -> None:
    config = load_config(DEPLOY / "relay.toml")
    assert config.outgoing
    for directory in BOTH:
        text = (FRAGMENTS / directory / "main.cf").read_text()
        limit = re.search(r"^message_size_limit = (\d+)$", text, re.MULTILINE)
        assert limit
        assert int(limit[1]) >= 1.4 * config.outgoing.max_message_size


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
async def test_the_systemd_unit_is_valid_and_gives_the_relay_next_to_no_rights(tmp_path: Path) -> None:
    text = (DEPLOY / "qumail-relay.service").read_text()
    program = tmp_path / "qumail-relay"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "qumail-relay.service"
    unit.write_text(re.sub(r"^(ExecStart(?:Pre)?=)\S+", rf"\g<1>{program}", text, flags=re.MULTILINE))
    assert await postfix.run("systemd-analyze", "verify", "--man=no", str(unit)) == ""
    await postfix.run("systemd-analyze", "security", "--offline=yes", "--threshold=20", str(unit))
