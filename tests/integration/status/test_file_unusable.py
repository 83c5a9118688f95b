"""A file that the next start needs is lost or damaged while the relay serves: an alarm, before it is restarted.
Standard: relay/status/next_start.py; one relay for all cases, a process of nobody's where root runs the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
import trustme

from relay.dkim.keys import make_key
from relay.entry.smtp.users import hashed
from relay.kme import DevelopmentKMEs
from tests.testlib.identities import Identities
from tests.testlib.nobody import AS_NOBODY, give_to_nobody
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process

SHORT = "from tests.system import drill; drill.kept = drill.shortened(); drill.kept.__enter__()"
SETTINGS = """
[submission]
listen = "127.0.0.1:0"
certificate = "tls.pem"
key = "tls.key"
users = "users"

[status]
listen = "127.0.0.1:0"
token = "status.token"

[[dkim.keys]]
domain = "alice.example"
selector = "s1"
key = "dkim.key"
"""
CA = 'next_hop_tls = "required"\nnext_hop_ca = "hop.pem"\n'


def _site(top: Path, kmes: DevelopmentKMEs, identities: Identities, sink: Sink) -> Site:
    state = shutil.copytree(kmes.state_dir, top / "kme")
    site = make_site(
        top / "alice", "alice", state=state, kme_url=kmes.urls[0], outgoing=sink.address, settings=CA,
        identities=identities,
    )  # fmt: skip
    site.config_file.write_text(f"{site.config_file.read_text()}{SETTINGS}")
    authority, at = trustme.CA(), site.directory
    issued = authority.issue_cert("relay.alice.example")
    issued.cert_chain_pems[0].write_to_path(at / "tls.pem")
    issued.private_key_pem.write_to_path(at / "tls.key")
    authority.cert_pem.write_to_path(at / "hop.pem")
    (at / "users").write_text(f"ann:{hashed('correct horse')}:ann@alice.example\n")
    (at / "status.token").write_text("t" * 40)
    make_key(at / "dkim.key", "alice.example", "s1", "ed25519")
    for name in ("tls.key", "users", "status.token"):
        (at / name).chmod(0o600)
    return site


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _of_root(path: Path) -> None:
    path.chmod(0o600 if os.geteuid() == 0 else 0)
    if os.geteuid() == 0:
        os.chown(path, 0, 0)


ROUNDS: tuple[dict[str, Callable[[Path], None]], ...] = (
    {"alice/relay.toml": _of_root},
    {"alice/peers/bob.json": _of_root, "alice/users": _of_root},
    {"alice/identity/signing.*.key": _cut},
    {"alice/identity/kem.*.pem": Path.unlink},
    {
        "alice/peers/bob.json": _empty, "alice/identity/ca.key": Path.unlink, "kme/sae-2.key": _empty,
        "alice/hop.pem": _empty, "alice/tls.pem": _cut, "alice/status.token": _empty,
        "alice/dkim.key": _cut,
    },
)  # fmt: skip
"""What happens at the same time; of some only the first is named."""


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory that others can search."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def _until_named(file: Path, paths: Collection[Path]) -> None:
    """Until the alarm names just these; until it does not stand, where there are none."""
    cause = ""
    try:
        async with asyncio.timeout(30):
            while True:
                rows = json.loads(file.read_text())["alarms"] if file.exists() else []
                cause = "".join(each["cause"] for each in rows if each["alarm"] == "file_unusable")
                if all(str(path) in cause for path in paths) and bool(cause) == bool(paths):
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{paths}: {cause!r}") from None


async def test_a_file_without_which_no_relay_starts_is_an_alarm_while_one_still_serves(
    top: Path, kmes: DevelopmentKMEs, identities: Identities, sink: Sink
) -> None:
    site = _site(top, kmes, identities, sink)
    alarms, as_root = site.config.alarms_file, os.geteuid() == 0
    if as_root:
        give_to_nobody(top)
    async with relay_process(site, before="; ".join([SHORT, *([AS_NOBODY] if as_root else [])])):
        for harms in ROUNDS:
            paths = {path: harm for name, harm in harms.items() for path in top.glob(name)}
            assert len(paths) == len(harms)
            for number, (path, harm) in enumerate(paths.items()):
                shutil.copy2(path, top / f"before-{number}")
                harm(path)
            await _until_named(alarms, paths)
            for number, path in enumerate(paths):
                path.unlink(missing_ok=True)
                (top / f"before-{number}").rename(path)
                if as_root:
                    give_to_nobody(path)
            await _until_named(alarms, ())
        state = site.config.state_directory
        shutil.rmtree(state / "audit.pending", ignore_errors=True)
        (state / "former_peers.json").unlink(missing_ok=True)
        (state / "former_peers.json").mkdir()
        files = [state / name for name in ("keys.spool", "audit.pending")]
        for file in files:
            file.touch()
        await _until_named(alarms, [*files, state / "former_peers.json"])
