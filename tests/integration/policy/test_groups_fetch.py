"""`qumail-relay groups fetch` from a real OpenLDAP server: what it writes, and when it changes nothing.
Standard: deploy/GROUPS.md.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from tests.testlib import relay_command
from tests.testlib.mails import plain
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, serving
from tests.testlib.slapd import BASE, PASSWORD, READER, Slapd, requires_slapd, slapd
from tests.testlib.submit import submit

pytestmark = requires_slapd

PEOPLE = 30
BY_HAND = '# typed by hand\npress = ["desk@news.example"]\n'


def _entries() -> str:
    """People enough for several pages, and two groups, one within the other."""
    names = [f"p{number}" for number in range(PEOPLE)]
    people = "".join(
        f"dn: cn={name},{BASE}\nobjectClass: inetOrgPerson\ncn: {name}\nsn: {name}\nmail: {name}@alice.example\n\n"
        for name in names
    )
    members = "".join(f"member: cn={name},{BASE}\n" for name in names[2:])
    groups = {"law": members, "board": f"member: cn=p0,{BASE}\nmember: cn=law,{BASE}\n"}
    return people + "".join(
        f"dn: cn={name},{BASE}\nobjectClass: groupOfNames\ncn: {name}\n{text}\n" for name, text in groups.items()
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    with slapd(tmp_path_factory.mktemp("ldap") / "slapd", _entries()) as running:
        yield running


def a_site(path: Path, kmes: DevelopmentKMEs, server: Slapd, sink: Sink, **changed: object) -> Site:
    site = make_site(
        path, "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies={
            "default.toml": 'levels = ["plaintext"]\n',
            "floors.toml": '[[floor]]\nsender = "group:board"\nlevels = ["aes"]\n',
            "groups.toml": BY_HAND,
            "tests.toml": '[[test]]\nsender = "p1@alice.example"\nrecipient = "x@nowhere.example"\nexpect = "plaintext"\n',
        },
    )  # fmt: skip
    (path / "ldap.password").write_text(f"{PASSWORD}\n")
    settings = {
        "servers": [server.url],
        "ca": str(server.ca),
        "user": READER,
        "password": "ldap.password",
        "base": BASE,
    } | changed
    table = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items() if value)
    groups = f'[ldap.groups]\nboard = "cn=board,{BASE}"\n'
    site.config_file.write_text(f"{site.config_file.read_text()}\n[ldap]\n{table}{groups}")
    return site


async def fetch(site: Site, *options: str, before: str = "") -> tuple[int, str, str]:
    code, said, out = await relay_command.run("groups", "fetch", "--config", site.config_file, *options, before=before)
    return code, said, out.decode()


def groups_of(site: Site) -> str:
    return (site.directory / "policies" / "groups.toml").read_text()


async def test_a_serving_relay_goes_by_the_groups_that_are_fetched(
    tmp_path: Path, kmes: DevelopmentKMEs, directory: Slapd, sink: Sink
) -> None:
    site = a_site(tmp_path, kmes, directory, sink)
    (site.directory / "policies" / "floors.toml").unlink()
    async with serving(site) as addresses:
        code, said, out = await fetch(site)
        assert (code, said) == (0, ""), out
        assert f"board: {PEOPLE - 1} addresses" in out
        assert groups_of(site).startswith(BY_HAND)
        site.write_policies({"floors.toml": '[[floor]]\nsender = "group:board"\nlevels = ["aes"]\n'})
        async with asyncio.timeout(30):
            while True:
                reply = await submit(
                    addresses["outgoing"], plain(), sender="p7@alice.example", recipients=["x@nowhere.example"]
                )
                if reply.code != 250:  # there is no peer for aes
                    break
                await asyncio.sleep(0.1)
        assert (
            await submit(addresses["outgoing"], plain(), sender="p1@alice.example", recipients=["x@nowhere.example"])
        ).code == 250
    code, _, out = await fetch(site, "--json")
    assert (code, json.loads(out)["changed"]) == (0, False)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"password": "wrong.password"}, "Invalid credentials"),
        ({"ca": ""}, "Can't contact LDAP server"),
        ({"user": "", "password": ""}, "Insufficient access"),
        ({"servers": ["ldaps://127.0.0.1:1"]}, "Can't contact LDAP server"),
    ],
)
async def test_where_the_directory_gives_no_whole_answer_nothing_is_changed(
    changed: dict[str, object], words: str, tmp_path: Path, kmes: DevelopmentKMEs, directory: Slapd, sink: Sink
) -> None:
    site = a_site(tmp_path, kmes, directory, sink, **changed)
    (tmp_path / "wrong.password").write_text("not this\n")
    code, said, _ = await fetch(site)
    assert code == 1
    assert words in said
    assert "stays as it is" in said
    assert groups_of(site) == BY_HAND


async def test_with_starttls_and_a_base_elsewhere_the_groups_are_the_same(
    tmp_path: Path, kmes: DevelopmentKMEs, directory: Slapd, sink: Sink
) -> None:
    changed = {"servers": ["ldaps://127.0.0.1:1", directory.starttls], "base": f"ou=nowhere,{BASE}"}
    site = a_site(tmp_path, kmes, directory, sink, **changed)
    code, said, _ = await fetch(site)
    assert (code, said) == (0, "")
    assert groups_of(site).count("@alice.example") == PEOPLE - 1


async def test_an_answer_that_the_server_cuts_off_changes_nothing(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    with slapd(tmp_path / "slapd", _entries(), size_limit="10 size.prtotal=10") as server:
        site = a_site(tmp_path / "alice", kmes, server, sink)
        code, said, _ = await fetch(site)
    assert code == 1
    assert "limit exceeded" in said
    assert groups_of(site) == BY_HAND


async def test_an_answer_without_end_fills_neither_disk_nor_memory(
    tmp_path: Path, kmes: DevelopmentKMEs, directory: Slapd, sink: Sink
) -> None:
    site = a_site(tmp_path, kmes, directory, sink)
    code, said, _ = await fetch(site, before="from relay.groups import ldap; ldap.MAX_ANSWER = 1000")
    assert code == 1
    assert "more than 1000 octets; write a narrower base" in said
    assert groups_of(site) == BY_HAND


async def test_a_group_that_loses_most_of_its_people_waits_for_an_administrator(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    with slapd(tmp_path / "slapd", _entries()) as server:
        site = a_site(tmp_path / "alice", kmes, server, sink)
        assert (await fetch(site))[0] == 0
        before = groups_of(site)
        server.change(f"dn: cn=board,{BASE}\nchangetype: modify\ndelete: member\nmember: cn=law,{BASE}\n")
        code, said, out = await fetch(site)
        assert code == 1
        assert f"{PEOPLE - 2} of {PEOPLE - 1} addresses would go" in said
        assert "qumail-relay groups fetch --accept board" in said
        assert "- and" in out
        assert groups_of(site) == before
        assert (await fetch(site, "--accept", "board", "--dry-run"))[0] == 0
        assert groups_of(site) == before
        assert (await fetch(site, "--accept", "board"))[0] == 0
        assert groups_of(site).endswith('board = [\n    "p0@alice.example",\n]\n')


async def test_a_person_with_an_address_that_no_policy_can_name_keeps_nobody_else_out(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    odd = ("x\x7f@alice.example", "x@[192.0.2.1]", f"{'x' * 1001}@alice.example", "x@a_.\x7f", "x,y@alice.example")
    mails = "".join(f"mail:: {base64.b64encode(each.encode()).decode()}\n" for each in odd)
    entries = _entries().replace("mail: p0@", f"{mails}mail: p0@")
    with slapd(tmp_path / "slapd", entries) as server:
        site = a_site(tmp_path / "alice", kmes, server, sink)
        code, said, out = await fetch(site)
    assert (code, said.count("no address of one person")) == (0, len(odd)), said
    assert f"board: {PEOPLE - 1} addresses" in out
    assert groups_of(site).count("@") == PEOPLE


async def test_groups_with_which_a_test_of_the_policies_fails_are_not_written(
    tmp_path: Path, kmes: DevelopmentKMEs, directory: Slapd, sink: Sink
) -> None:
    site = a_site(tmp_path, kmes, directory, sink)
    test = '[[test]]\nsender = "p7@alice.example"\nrecipient = "x@nowhere.example"\nexpect = "plaintext"\n'
    site.write_policies({"tests.toml": test})
    code, said, _ = await fetch(site)
    assert code == 1
    assert "tests.toml:1" in said
    assert groups_of(site) == BY_HAND


async def test_without_a_fetch_of_late_an_alarm_begins_and_the_next_fetch_ends_it(
    tmp_path: Path, kmes: DevelopmentKMEs, directory: Slapd, sink: Sink
) -> None:
    site = a_site(tmp_path, kmes, directory, sink)
    from relay.status.ready import _groups  # what /readyz and the alarms are told

    assert "no fetch of the groups has succeeded" in _groups(site.config)
    assert (await fetch(site))[0] == 0
    assert _groups(site.config) == ""
    long_ago = site.config.groups_fetched_file
    os.utime(long_ago, (1, 1))
    assert "hours ago" in _groups(site.config)
