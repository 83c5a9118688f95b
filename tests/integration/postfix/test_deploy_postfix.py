"""The files in deploy/ that stand beside Postfix: applied as they say, they are accepted without a warning.
Standard: postconf(1) and postfix(1) of the installed Postfix, systemd-analyze(1) of the installed systemd.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from relay.config import TCPAddress, load_config
from relay.config.ports import INCOMING, OUTGOING, STATUS
from tests.testlib import postfix, reference
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import FRAGMENTS, requires_postfix

DEPLOY = FRAGMENTS.parent
LMTP = ("outgoing-lmtp", "incoming-lmtp")
SMTP = ("outgoing-smtp", "incoming-smtp")
SINGLE = (*LMTP, *SMTP, "smarthost", "smarthost-login", "milter")
TOGETHER = (
    LMTP,
    SMTP,
    (*LMTP, "outgoing-proxy"),
    (*SMTP, "outgoing-proxy"),
    (*LMTP, "outgoing-proxy", "incoming-proxy"),
)
PORTS = sorted((*OUTGOING, *INCOMING))
HABITS = (*range(10023, 10033), 8891, 8893, 9998, *range(11332, 11335), 12301)
"""Ports of amavisd and others behind Postfix, of policy services, signers and scanners."""


def text(directory: str, name: str) -> str:
    return (FRAGMENTS / directory / name).read_text()


def service(directory: str, port: int) -> str:
    """The service of a master.cf that takes mail back, without its comment."""
    found = re.search(rf"^127\.0\.0\.1:{port} inet .*\n(    .*\n)*", text(directory, "master.cf"), re.MULTILINE)
    assert found
    return found[0]


@requires_postfix
@pytest.mark.parametrize("fragments", [*((name,) for name in SINGLE), *TOGETHER], ids="+".join)
async def test_postfix_accepts_the_settings_without_a_warning(fragments: tuple[str, ...]) -> None:
    smtp, *free = free_addresses(1 + len(PORTS))
    async with postfix.made(
        smtp=smtp, fragments=fragments, ports=dict(zip(PORTS, free, strict=True)),
        settings={"myhostname": "mail.alice.example"},
    ) as made:  # fmt: skip
        await made.command("postfix", "check")
        assert made.log == ""
        for way_to_print in ("-n", "-M", "-P"):
            assert "warning:" not in await made.command("postconf", way_to_print)


@requires_postfix
@pytest.mark.parametrize(("fragments", "outgoing", "incoming"), [(LMTP, 15024, 15034), (SMTP, 15025, 15035)])
async def test_postfix_with_both_filters_opens_what_arrives_and_lets_the_outgoing_relay_decide_on_everything(
    fragments: tuple[str, ...], outgoing: int, incoming: int
) -> None:
    smtp, *free = free_addresses(1 + len(PORTS))
    ports = dict(zip(PORTS, free, strict=True))
    async with postfix.made(smtp=smtp, fragments=fragments, ports=ports, settings={}) as made:
        filters = {
            line.split("/")[0]: line.partition("= ")[2]
            for line in (await made.command("postconf", "-P", "*/inet/content_filter")).splitlines()
        }
        assert filters == {str(smtp): f"qumail:[127.0.0.1]:{ports[incoming].port}", str(ports[15026]): ""}
        everything_else = await made.command("postconf", "-h", "content_filter")
        assert everything_else.strip() == f"qumail:[127.0.0.1]:{ports[outgoing].port}"


def test_the_files_name_the_ports_of_the_code_and_none_that_others_have_by_habit() -> None:
    texts = [path.read_text() for path in FRAGMENTS.glob("*/*")]
    assert {int(port) for text in texts for port in re.findall(r"\b\d{5}\b", text)} == set(PORTS)
    assert {*PORTS, STATUS}.isdisjoint(HABITS)


def test_the_ports_are_those_of_relay_toml(tmp_path: Path) -> None:
    config = load_config(reference.written(tmp_path))
    outgoing, incoming = config.outgoing, config.incoming
    assert outgoing
    assert incoming
    for directories, addresses in ((LMTP, (outgoing.lmtp, incoming.lmtp)), (SMTP, (outgoing.listen, incoming.listen))):
        for directory, address, direction in zip(directories, addresses, (outgoing, incoming), strict=True):
            assert address
            assert f"qumail:[{address.host}]:{address.port}" in text(directory, "main.cf")
            [next_hop] = direction.next_hop
            assert re.search(rf"^{re.escape(str(next_hop))} inet ", text(directory, "master.cf"), re.MULTILINE)
    assert outgoing.listen == TCPAddress("127.0.0.1", 15025)
    assert "relayhost = [127.0.0.1]:15025\n" in text("smarthost", "main.cf")
    assert "smtpd_proxy_filter=127.0.0.1:15025'" in text("outgoing-proxy", "main.cf")
    assert config.submission
    assert config.submission.listen
    assert f"]:{config.submission.listen.port}\n" in text("smarthost-login", "main.cf")


@pytest.mark.parametrize(("port", "by_lmtp", "by_smtp"), [(15026, *(LMTP[0], SMTP[0])), (15036, *(LMTP[1], SMTP[1]))])
def test_mail_comes_back_in_the_same_way_whatever_carried_it_to_the_relay(
    port: int, by_lmtp: str, by_smtp: str
) -> None:
    assert service(by_lmtp, port) == service(by_smtp, port)


def test_a_sealed_mail_of_the_largest_size_is_not_too_large_for_postfix(tmp_path: Path) -> None:
    config = load_config(reference.written(tmp_path))
    assert config.outgoing
    for directory in (*LMTP, *SMTP, "milter"):
        limit = re.search(r"^message_size_limit = (\d+)$", text(directory, "main.cf"), re.MULTILINE)
        assert limit
        assert int(limit[1]) >= 1.4 * config.outgoing.max_message_size


def test_every_directory_is_explained_and_tested() -> None:
    directories = {path.name for path in FRAGMENTS.iterdir()}
    assert directories == {*SINGLE, "outgoing-proxy", "incoming-proxy"}
    explained = set(re.findall(r"\]\(postfix/([\w-]+)/main\.cf\)", (DEPLOY / "POSTFIX.md").read_text()))
    assert explained == directories


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
async def test_the_systemd_unit_is_valid_and_gives_the_relay_next_to_no_rights(tmp_path: Path) -> None:
    service_file = (DEPLOY / "qumail-relay.service").read_text()
    program = tmp_path / "qumail-relay"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "qumail-relay.service"
    unit.write_text(re.sub(r"^(Exec\w+=)/opt/\S+", rf"\g<1>{program}", service_file, flags=re.MULTILINE))
    for name in ("qumail-relay.socket", "qumail-relay-waiting.service"):
        shutil.copy(DEPLOY / name, tmp_path)
    (tmp_path / "qumail-relay.socket.d").mkdir()
    (tmp_path / "qumail-relay.socket.d" / "addresses.conf").write_text("[Socket]\nListenStream=127.0.0.1:15024\n")
    units = (str(unit), f"{tmp_path}/qumail-relay.socket", f"{tmp_path}/qumail-relay-waiting.service")
    assert await postfix.run("systemd-analyze", "verify", "--man=no", *units) == ""
    await postfix.run("systemd-analyze", "security", "--offline=yes", "--threshold=20", str(unit))
