"""A relay that may not look at peers' documents, its identity or other files any more goes on with what it knows.
Standard: "a peer whose document is gone is a peer no more" is for documents that are gone (ENOENT, ENOTDIR) alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from relay.config import load_config
from relay.dkim.in_force import DKIMInForce
from relay.dkim.keys import make_key
from relay.entry.server_tls import ServerTLS
from relay.entry.smtp.users import UserFile, hashed
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from relay.status.access import Access
from tests.integration.test_reloading import events, until, without_table
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.nobody import AS_NOBODY, as_nobody, by_root, give_to_nobody
from tests.testlib.sink import Sink
from tests.testlib.sites import DidNotStart, Site, make_site, relay_process
from tests.testlib.submit import submit

pytestmark = by_root

POLICIES = {"default.toml": 'levels = ["plaintext"]\nreason = "public"\n'}
PQC = {"bob.example.toml": 'levels = ["pqc"]\n'}


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory that others can search."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def site(top: Path, kmes: DevelopmentKMEs, identities: Identities, sink: Sink) -> AsyncIterator[Site]:
    """Nobody's; Bob is known by a document alone, which lies in a directory that root may close."""
    state = shutil.copytree(kmes.state_dir, top / "kme")
    made = make_site(
        top / "alice", "alice", state=state, kme_url=kmes.urls[0], outgoing=sink.address, policies=POLICIES | PQC,
        identities=identities,
    )  # fmt: skip
    without_table(made, "bob")
    give_to_nobody(top)
    yield made


@pytest.mark.parametrize(("peers", "identity"), [(0o300, 0o600), (0o600, 0o300)])
async def test_a_peer_whose_document_cannot_be_looked_at_stays_one_as_the_identity_stays(
    site: Site, sink: Sink, peers: int, identity: int
) -> None:
    async with relay_process(site, before=AS_NOBODY) as relay:
        for name, mode in (("peers", peers), ("identity", identity)):
            closed = site.directory / name
            closed.chmod(mode)
            [problem] = (await until(relay, f"{name}_not_reloaded"))["problems"]
            assert problem.startswith(f"{closed}: cannot be ")
            assert (
                f"by nobody: Permission denied (mode {mode:04o}, owner nobody:nogroup): runuser --pty -u nobody -- chmod u+"
                in problem
            )
            assert (await submit(relay.addresses["outgoing"], mails.plain())).code == 250
            assert b"application/pkcs7-mime" in sink.got[-1].message
    assert events(relay, "peers_reloaded") == []


async def test_no_relay_starts_as_if_such_a_peer_were_gone(site: Site) -> None:
    (site.directory / "policies/bob.example.toml").unlink()  # without the peer default.toml would count for its mail
    for name, mode in (("peers", 0o300), ("peers", 0o600), ("identity", 0o300)):
        (site.directory / name).chmod(mode)
        with pytest.raises(DidNotStart, match=f"alice/{name}: cannot be .* chmod u.[rx] {site.directory}/{name}"):
            async with relay_process(site, before=AS_NOBODY):
                pass
        (site.directory / name).chmod(0o700)


def test_files_that_are_read_again_stay_in_force_in_a_directory_that_cannot_be_searched(top: Path) -> None:
    users, token, key = top / "in/users", top / "in/token", top / "in/dkim.key"
    (top / "in").mkdir(mode=0o700)
    certificate = trustme.CA().issue_cert("relay.alice.example")
    certificate.private_key_and_cert_chain_pem.write_to_path(top / "in/tls.pem")
    users.write_text(f"ann:{hashed('correct horse')}:ann@alice.example\n")
    token.write_text("t" * 40)
    make_key(key, "alice.example", "s1", "ed25519")
    for path in (users, token):
        path.chmod(0o600)
    (top / "relay.toml").write_text(RELAY_TOML.format(key=key))
    give_to_nobody(top / "in")
    with as_nobody():
        config = load_config(top / "relay.toml")
        file, access, dkim = UserFile(users), Access(token, local_names=True), DKIMInForce(lambda: config)
        tls = ServerTLS(top / "in/tls.pem", top / "in/tls.pem")
        (top / "in").chmod(0o600)
        with capture_logs() as logs:
            assert file.verify("ann", "correct horse")
            for each in (access, dkim, tls):
                assert each.stamps() != each.read_at
                each.reload()
        assert dkim.signer() is not None
        with pytest.raises(ConfigError, match=f"{top}/in: cannot be searched by nobody"):
            UserFile(users)
        (top / "in").chmod(0o700)
    assert [entry["event"] for entry in logs] == [
        "users_not_reloaded", "status_token_not_reloaded", "dkim_keys_not_reloaded", "certificate_not_reloaded",
    ]  # fmt: skip
    for entry in logs:
        assert f"{top}/in: cannot be searched by nobody: Permission denied (mode 0600" in entry["problems"][0]


RELAY_TOML = """\
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "2"
[outgoing]
listen = "127.0.0.1:0"
next_hop = "127.0.0.1:1"
[policies]
directory = "policies"
[store]
database = "relay.db"
secret = "site.secret"
[[dkim.keys]]
domain = "alice.example"
selector = "s1"
key = "{key}"
"""
