"""`qumail-relay check --postfix`: every bad configuration in data/postfix has one fault, and that one is found.
Standard: the configurations are deploy/postfix as it stands, and then what the file says; Postfix's own postconf reads it.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay import postfix as checked
from relay.cli import check_listeners, cli
from relay.config import TCPAddress, load_config
from relay.entry.listening import Where
from tests.testlib import postfix, reference
from tests.testlib.identities import Identities
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postconf
from tests.testlib.relay_command import run
from tests.testlib.sites import make_site

pytestmark = requires_postconf

DATA = Path(__file__).parents[2] / "data" / "postfix"
USUAL = "outgoing-lmtp incoming-lmtp"
NO_INCOMING = r"^\[incoming\]\n(.+\n)+ ->"
GOOD = {
    USUAL: [],
    "outgoing-smtp incoming-smtp": [],
    "outgoing-lmtp incoming-lmtp outgoing-proxy": [],
    "outgoing-smtp incoming-smtp outgoing-proxy": [],
    "outgoing-lmtp incoming-lmtp incoming-proxy": [],
    "outgoing-smtp incoming-smtp outgoing-proxy incoming-proxy": [],
    "outgoing-lmtp": [NO_INCOMING],
    "incoming-smtp": [r"^\[outgoing\]\n(.+\n)+ ->", r"^\[submission\]\n(.+\n)+ ->"],
    "smarthost": [NO_INCOMING, '^next_hop = .* -> next_hop = "mail.alice.example:25"'],
    "milter": [],
}
"""Directories that are applied together, with the changes to relay.toml that they ask for."""


@dataclass(frozen=True)
class Bad:
    """One file: what is right before, what the relay.toml says otherwise, what is done, which codes must be found."""

    name: str
    base: str
    relay: list[str]
    expect: list[str]
    commands: str


def read(path: Path) -> Bad:
    text = path.read_text()
    known = dict(re.findall(r"^# (expect|base): (.*)$", text, re.MULTILINE))
    relay = re.findall(r"^# relay: (.*)$", text, re.MULTILINE)
    return Bad(path.stem, known.get("base", USUAL), relay, known["expect"].split(), text)


BAD = [read(path) for path in sorted(DATA.glob("*.sh"))]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the right configurations lie, each made once."""
    return tmp_path_factory.mktemp("bases")


async def configured(bases: Path, base: str, directory: Path) -> Path:
    """A copy of a right configuration."""
    made = bases / str(list(GOOD).index(base))  # short, since Postfix keeps sockets there
    if not made.exists():
        made.mkdir()
        await postfix.configure(made, base.split())
    shutil.copytree(made / "etc", directory / "etc")
    return directory


def relay_toml(directory: Path, changes: Sequence[str]) -> Path:
    """The relay.toml of deploy/SETTINGS.md with regular expressions replaced: `this -> that`.

    Nobody is asked by canaries, for which it would need both directions.
    """
    text = reference.as_it_stands().replace("\nevery = 900\n", "\n")
    for change in changes:
        this, _, that = change.partition(" ->")
        text, number = re.subn(this, that.strip(), text, count=1, flags=re.MULTILINE)
        assert number == 1, change
    path = directory / "relay.toml"
    path.write_text(text)
    return path


async def codes(directory: Path, config: Path) -> list[str]:
    """The codes of what is found, each once."""
    found = (await checked.judge_all(directory / "etc", load_config(config))).faults
    return sorted({fault.code for fault in found})


@pytest.mark.parametrize("base", GOOD)
async def test_what_deploy_says_has_no_fault(bases: Path, tmp_path: Path, base: str) -> None:
    directory = await configured(bases, base, tmp_path)
    found = (await checked.judge_all(directory / "etc", load_config(relay_toml(tmp_path, GOOD[base])))).faults
    assert list(map(str, found)) == []


@pytest.mark.promise("Nobody takes the relay out of Postfix's configuration unnoticed")
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
async def test_a_bad_configuration_is_named(bases: Path, tmp_path: Path, bad: Bad) -> None:
    directory = await configured(bases, bad.base, tmp_path)
    await postfix.change(directory, bad.commands)
    assert await codes(directory, relay_toml(tmp_path, bad.relay)) == sorted(bad.expect)


@pytest.mark.parametrize("name", ["dkim-front", "dkim-pickup", "milter-order"])
async def test_what_signs_originals_may_stand_before_a_relay_that_signs_itself(
    bases: Path, tmp_path: Path, name: str
) -> None:
    bad = read(DATA / f"{name}.sh")
    directory = await configured(bases, bad.base, tmp_path)
    await postfix.change(directory, bad.commands)
    changes = [change for change in bad.relay if "dkim" not in change]
    assert await codes(directory, relay_toml(tmp_path, changes)) == []


@pytest.mark.parametrize("base", [USUAL, "outgoing-smtp incoming-smtp", "milter"])
@pytest.mark.parametrize(
    "milter", ["inet:localhost:11332", "unix:rspamd/milter.sock", "unix:spamass/spamass.sock", "inet:127.0.0.1:8893"]
)
async def test_a_scanner_that_sees_mail_before_it_is_sealed_and_once_it_is_opened_is_no_fault(
    bases: Path, tmp_path: Path, base: str, milter: str
) -> None:
    directory = await configured(bases, base, tmp_path)
    opening = "inet:127.0.0.1:15038, " if base == "milter" else ""
    sealing = ", inet:127.0.0.1:15028" if base == "milter" else ""
    await postfix.change(
        directory,
        f"postconf -e 'smtpd_milters = {opening}{milter}{sealing}' 'non_smtpd_milters = {milter}{sealing}'",
    )
    if base == "milter":
        await postfix.change(
            directory, f"postconf -P '127.0.0.1:15036/inet/smtpd_milters={milter},inet:127.0.0.1:15028'"
        )
    assert await codes(directory, relay_toml(tmp_path, GOOD[base])) == []


@pytest.mark.parametrize(
    ("base", "entries"),
    [
        (USUAL, "{ alice.example = lmtp:unix:private/lmtp }, { bob.example = smtp:[mx.bob.example]:26 }"),
        ("smarthost", "{ alice.example = :[192.0.2.2] }, { .alice.example = local: }, { bob.example = : }"),
    ],
)
async def test_a_usual_transport_table_is_no_fault(bases: Path, tmp_path: Path, base: str, entries: str) -> None:
    directory = await configured(bases, base, tmp_path)
    refused = "{ typo.example = error:5.1.2 alice.example is meant }"
    await postfix.change(directory, f"postconf -e 'transport_maps = inline:{{ {entries}, {refused} }}'")
    assert await codes(directory, relay_toml(tmp_path, GOOD[base])) == []


async def test_listeners_that_are_off_and_traces_that_are_taken_out_are_no_fault(bases: Path, tmp_path: Path) -> None:
    directory = await configured(bases, USUAL, tmp_path)
    traces = "smtp_header_checks = regexp:{{/^(Received|User-Agent):/ IGNORE}}"
    await postfix.change(
        directory, f"postconf -e '{traces}' master_service_disable=smtp/inet default_destination_rate_delay=1s"
    )
    await postfix.change(directory, "postconf -e smtpd_etrn_restrictions=reject")
    await postfix.change(
        directory, "postconf -P submission/inet/smtpd_client_restrictions=permit_sasl_authenticated,reject"
    )
    assert await codes(directory, relay_toml(tmp_path, ())) == []


async def test_a_table_that_asks_a_server_is_reported_until_somebody_answers_for_it(
    bases: Path, tmp_path: Path
) -> None:
    directory = await configured(bases, USUAL, tmp_path)
    tables = ("socketmap:inet:127.0.0.1:2525:access", "proxy:tcp:127.0.0.1:2526")
    words = " ".join(f"check_client_access {each}" for each in tables)
    await postfix.change(directory, f"postconf -e 'smtpd_client_restrictions = {words}'")
    found = (await checked.judge_all(directory / "etc", load_config(relay_toml(tmp_path, ())))).faults
    assert [(each.code, each.where) for each in found] == [("table-unread", each) for each in tables]
    [named] = re.findall(r"\[postfix\] (unlisted = \[.*?\])", found[0].remedy)
    one = load_config(
        relay_toml(tmp_path, [rf'^directory = "/etc/postfix"\n -> directory = "/etc/postfix"\n{named}\n'])
    )
    [left] = (await checked.judge_all(directory / "etc", one)).faults
    assert (left.code, left.where) == ("table-unread", tables[1])


async def test_a_setting_without_a_rule_that_the_administrator_vouches_for_is_reported_again_with_another_value(
    bases: Path, tmp_path: Path
) -> None:
    directory = await configured(bases, USUAL, tmp_path)
    await postfix.change(directory, "postconf -e smtp_bind_address=192.0.2.25")
    [found] = (await checked.judge_all(directory / "etc", load_config(relay_toml(tmp_path, ())))).faults
    [known] = re.findall(r"\[postfix\] (known = \[.*?\])", found.remedy)
    config = relay_toml(tmp_path, [rf'^directory = "/etc/postfix"\n -> directory = "/etc/postfix"\n{known}\n'])
    assert await codes(directory, config) == []
    await postfix.change(directory, "postconf -e smtp_bind_address=127.0.0.1")
    assert await codes(directory, config) == ["unjudged"]


def test_every_fault_that_can_be_found_has_a_bad_configuration() -> None:
    source = "".join(path.read_text() for path in Path(checked.__file__).parent.glob("*.py"))
    known = set(re.findall(r'(?:PostfixFault|fault)\(\s*"([a-z0-9-]+)"', source))
    of_the_queue = {"queue-stranded", "queue-unknown"}  # tests/integration/setup/test_integrations.py has mail in one
    of_the_queue |= {"waits-behind"}  # tests/integration/postfix/test_waits_behind.py
    of_what_runs = {"connected-before"}  # tests/integration/setup/test_restart.py
    assert known - of_the_queue - of_what_runs == {code for bad in BAD for code in bad.expect}


async def test_the_command_says_where_what_and_what_to_do_and_ends_with_1(bases: Path, tmp_path: Path) -> None:
    directory = await configured(bases, USUAL, tmp_path)
    await postfix.change(directory, "postconf -PX 127.0.0.1:15026/inet/content_filter")
    status, err, out = await run("check", "--postfix", directory / "etc", "--config", reference.written(tmp_path))
    assert (status, err) == (1, "")
    assert b"WRONG  Postfix  main.cf: content_filter = qumail:[127.0.0.1]:15024: " in out
    assert b"in a loop; postconf -P 127.0.0.1:15026/inet/content_filter= [loop]" in out


async def test_the_command_ends_with_0_where_all_is_well_and_has_json_for_programs(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = await configured(bases, USUAL, tmp_path)
    listens_at, lmtp = check_listeners.listens_at, {15024, 15034}

    async def listens(where: Where, *, unknown: bool = False) -> bool:
        ours = isinstance(where, TCPAddress) and where.port in lmtp
        return ours or await listens_at(where, unknown=unknown)

    monkeypatch.setattr(check_listeners, "listens_at", listens)
    monkeypatch.setattr(check_listeners, "serves", lambda _: None)
    words = ["check", "--postfix", str(directory / "etc"), "--config", str(reference.written(tmp_path)), "--json"]
    done = await asyncio.to_thread(CliRunner().invoke, cli, words)
    assert [(finding["what"], finding["problems"]) for finding in json.loads(done.output)] == [
        ("configuration", []),
        ("Postfix", []),
    ]
    assert done.exit_code == 0


async def test_ports_of_ours_that_postfix_hands_mail_to_and_where_nobody_listens_are_wrong(
    bases: Path, tmp_path: Path
) -> None:
    directory = await configured(bases, USUAL, tmp_path)
    config = reference.written(tmp_path)
    outgoing, incoming = free_addresses(2)
    text = config.read_text().replace("127.0.0.1:15024", str(outgoing)).replace("127.0.0.1:15034", str(incoming))
    config.write_text(text)
    for file in ("main.cf", "master.cf"):
        path = directory / "etc" / file
        path.write_text(path.read_text().replace("15024", str(outgoing.port)).replace("15034", str(incoming.port)))
    status, _, out = await run("check", "--postfix", directory / "etc", "--config", config, "--json")
    found = {finding["what"]: finding["problems"] for finding in json.loads(out)}
    assert status == 1
    for name, address in (("outgoing", outgoing), ("incoming", incoming)):
        [problem] = found[f"listener {name}.lmtp"]
        assert problem.startswith(f"{address}: nobody listens, and Postfix hands mail to it")
        assert f"start it: qumail-relay serve --config {config}" in problem
    assert "listener outgoing.listen" not in found, "Postfix hands no mail to it"


async def test_without_a_directory_it_looks_at_the_hosts_own_postfix(tmp_path: Path) -> None:
    status, err, out = await run("check", "--config", reference.written(tmp_path), "--postfix")
    assert (status, err) == (1, "")
    assert b"/etc/postfix" in out


@pytest.mark.parametrize("asked_for", [True, False], ids=["--postfix", "check"])
async def test_peers_of_pinned_documents_are_known_though_no_relay_serves(
    bases: Path, tmp_path: Path, identities: Identities, *, asked_for: bool
) -> None:
    directory = await configured(bases, USUAL, tmp_path)
    await postfix.change(directory, "postconf -e virtual_alias_domains=bob.example")
    site = make_site(
        tmp_path / "alice", "alice", state=tmp_path, kme_url="https://localhost:1", identities=identities,
        outgoing=TCPAddress("127.0.0.1", 15026), incoming=TCPAddress("127.0.0.1", 15036),
    )  # fmt: skip
    text = site.config_file.read_text().replace('domains = ["bob.example"]\n', "")
    for port in (15024, 15034):
        text = text.replace('listen = "127.0.0.1:0"', f'lmtp = "127.0.0.1:{port}"', 1)
    site.config_file.write_text(f'{text}\n[postfix]\ndirectory = "{directory}/etc"\n')
    words = ["--postfix", str(directory / "etc")] if asked_for else ["--no-next-hops"]
    _, err, out = await run("check", "--config", site.config_file, "--json", *words)
    assert "peer-is-local" in out.decode(), err


async def test_a_directory_without_postfix_is_said_to_be_one(tmp_path: Path) -> None:
    status, err, out = await run("check", "--postfix", tmp_path, "--config", reference.written(tmp_path))
    assert (status, err) == (1, "")
    assert b"main.cf: No such file or directory" in out.replace(b"\n", b" ")


async def test_without_postconf_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("relay.postfix.settings.ADMIN_PATHS", ())
    with pytest.raises(Exception, match="apt-get install postfix"):
        await checked.judge_all(tmp_path, load_config(reference.written(tmp_path)))


async def test_filters_that_do_not_answer_and_strangers_at_the_relays_ports_are_told(
    bases: Path, tmp_path: Path
) -> None:
    directory = await configured(bases, USUAL, tmp_path)
    milter, scanner, ours = free_addresses(3)
    await postfix.change(directory, f"postconf -e smtpd_milters=inet:{milter}")
    await postfix.change(directory, f"postconf -P submission/inet/content_filter=smtp:[127.0.0.1]:{scanner.port}")
    config = reference.written(tmp_path)
    config.write_text(config.read_text().replace("127.0.0.1:15025", str(ours)))
    with socket.create_server(ours):
        status, _, out = await run("check", "--postfix", directory / "etc", "--config", config)
    said = out.decode()
    assert status == 1
    assert f"smtpd_milters = inet:{milter}: nobody listens at {milter}" in said
    assert f"nobody listens at {scanner}" in said
    assert f"{ours}: a program" in said
    assert "it is no relay of this site" in said
    assert "listener outgoing.milter" not in said, "where Postfix hands no mail to nothing is wrong"
