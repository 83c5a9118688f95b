"""Making keys, printing their records, and what `check` says of the DNS, as an administrator meets them.
Standard: exit status 0 fine, 1 something is wrong with what was asked about, 2 wrong usage.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from relay.config import load_config
from relay.dkim import load_key
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from tests.integration.dkim.test_journey import add_dkim
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.zone import Zone
from tests.unit.dkim.conftest import Keys, pem


@pytest.fixture
def site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)


def published(lines: bytes) -> tuple[str, bytes]:
    """Name and text of a record as `new` and `show` print it."""
    name = lines.decode().split(". IN TXT ")[0]
    return name, "".join(re.findall(r'"([^"]*)"', lines.decode())).encode()


async def found(site: Site) -> dict[str, Any]:
    """What `check` says, by what it has looked at."""
    _, _, out = await run("check", "--json", "--config", site.config_file)
    return {finding["what"]: finding["problems"] for finding in json.loads(out)}


@pytest.mark.parametrize("algorithm", ["rsa", "ed25519"])
async def test_a_new_key_and_its_printed_record_and_table_are_all_it_takes(
    site: Site, zone: Zone, algorithm: str
) -> None:
    status, err, out = await run(
        "identity", "dkim", "new", "--config", site.config_file, "--algorithm", algorithm, "alice.example", "s1"
    )
    assert status == 0
    name, text = published(out)
    assert name == "s1._domainkey.alice.example"
    zone.texts[name] = text
    table = err[err.index("[[dkim.keys]]") :]
    site.config_file.write_text(f'{site.config_file.read_text()}\n[dkim]\ndns_servers = ["{zone.address}"]\n{table}')
    [key] = load_config(site.config_file).dkim.keys  # type: ignore[union-attr] # the table is there
    assert key.key == site.directory / "dkim" / "alice.example.s1.pem"
    assert stat.S_IMODE(key.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.key.parent.stat().st_mode) == 0o700
    assert (await found(site))["DKIM key s1 of alice.example"] == []
    assert await run("identity", "dkim", "show", "--config", site.config_file) == (0, "", out)


async def test_a_key_that_is_there_is_never_replaced(site: Site) -> None:
    new = ("identity", "dkim", "new", "--config", site.config_file, "alice.example", "s1")
    assert (await run(*new))[0] == 0
    path = site.directory / "dkim" / "alice.example.s1.pem"
    before = path.read_bytes()
    status, err, out = await run(*new)
    assert (status, out, path.read_bytes()) == (1, b"", before)
    assert "choose another selector" in err


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (("eve.example", "s1"), 1, "eve.example: none of site.domains (alice.example)"),
        (("alice.example", "s 1"), 2, "'s 1' cannot be a selector"),
        (("alice.example", "../s1"), 2, "'../s1' cannot be a selector"),
        (("alice.example", "s1", "--bits", "1024"), 2, "is not in the range 2048<=x<=4096"),
    ],
)
async def test_what_cannot_be_a_key_is_refused(
    site: Site, arguments: tuple[str, ...], status: int, expected: str
) -> None:
    found, err, _ = await run("identity", "dkim", "new", "--config", site.config_file, *arguments)
    assert (found, expected in err) == (status, True), err
    assert not (site.directory / "dkim").exists()


async def test_check_and_show_tell_what_is_wrong_with_each_key_and_its_record(
    site: Site, zone: Zone, keys: Keys
) -> None:
    add_dkim(site, zone, {f"alice.example {key.selector}": pem(key) for key in (keys.rsa, keys.ed25519, keys.weak)})
    zone.texts[keys.rsa.name] = keys.bob.record.encode()
    del zone.texts[keys.ed25519.name]
    problems = await found(site)
    [other] = problems["DKIM key r of alice.example"]
    [missing] = problems["DKIM key e of alice.example"]
    [weak] = problems["DKIM key weak of alice.example"]
    assert "the DNS has another key" in other
    assert "there is no key in the DNS" in missing
    assert "an RSA key of 1024 bits is weak" in weak
    zone.failing.add(keys.rsa.name)
    status, _, out = await run("identity", "dkim", "show", "--json", "--config", site.config_file)
    shown = {each["name"]: each for each in json.loads(out)}
    assert (status, list(shown)) == (1, [keys.rsa.name, keys.ed25519.name, keys.weak.name])
    assert shown[keys.rsa.name]["problems"] == [f"{keys.rsa.name}: the DNS did not answer"]
    assert shown[keys.ed25519.name]["record"] == keys.ed25519.record
    assert keys.ed25519.record.startswith("v=DKIM1; k=ed25519; p=")


async def test_a_key_file_that_cannot_be_used_is_named(site: Site, zone: Zone, keys: Keys) -> None:
    add_dkim(site, zone, {"alice.example r": pem(keys.rsa)})
    [table] = load_config(site.config_file).dkim.keys  # type: ignore[union-attr] # the table is there
    table.key.chmod(0o640)
    [problem] = (await found(site))["DKIM key r of alice.example"]
    assert "mode 0640 lets others read" in problem
    status, err, _ = await run("serve", "--config", site.config_file)
    assert (status, "mode 0640" in err) == (1, True)
    table.key.chmod(0o600)
    for content, expected in (
        (b"no key\n", "not a private key in PEM"),
        (b"", "not a private key in PEM"),
        ((site.directory.parent / "kme" / "sae-2.key").read_bytes(), "DKIM knows RSA and Ed25519 keys only"),
    ):
        table.key.write_bytes(content)
        with pytest.raises(ConfigError, match=expected):
            load_key(table)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ('[[dkim.keys]]\ndomain = "eve.example"\nselector = "s"\nkey = "k"', "'eve.example' is none of site.domains"),
        ('[[dkim.keys]]\ndomain = "alice.example"\nselector = "a b"\nkey = "k"', "dkim.keys.0.selector: "),
        ("[dkim]\narc_seal = true", "dkim.arc_seal: is no longer a setting: "),
        ('[dkim]\ndns_servers = ["localhost:53"]', "dkim.dns_servers: 'localhost' is not an IP address"),
        ('[dkim]\nauthserv_id = "a; spf=pass"', "dkim.authserv_id: "),
        ("[dkim]\nmax_signatures = 5", "dkim.max_signatures: is no longer a setting: "),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(site: Site, settings: str, expected: str) -> None:
    site.config_file.write_text(f"{site.config_file.read_text()}\n{settings}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(site.config_file)
    assert any(expected in problem for problem in caught.value.problems), caught.value.problems
