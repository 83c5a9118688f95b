"""The command line as a person or a script meets it: what it prints, and with which exit status it ends.
Standard: 0 fine, 1 something is wrong with what was asked about, 2 wrong usage; no traceback for anybody.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from relay.audit.entries import AddressHash
from relay.audit.policy_places import newest_first
from relay.audit.reading import records
from relay.audit.verifying import verify
from relay.cli import check
from relay.config import TCPAddress
from relay.files import sqlite
from relay.formats import cms, mime
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.process import app, assembly
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.testlib import mails, relay_command
from tests.testlib.identities import Identities
from tests.testlib.long import sized
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process
from tests.testlib.submit import submit

ROOT = Path(__file__).parents[3]


@pytest.fixture
def sites(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> tuple[Site, Site]:
    """Alice's and Bob's directories, with a relay.toml each; nothing runs but the KMEs."""
    first, second = kmes.urls
    alice = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=first, outgoing=sink.address)
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=second, incoming=sink.address)
    return alice, bob


ADDRESSES = ("--from", "ann@alice.example", "--to", "ben@bob.example")


async def test_seal_and_open_give_the_file_back(sites: tuple[Site, Site], tmp_path: Path) -> None:
    alice, bob = sites
    (tmp_path / "original.eml").write_bytes(mails.random_attachment())
    status, err, sealed = await run("seal", "--config", alice.config_file, *ADDRESSES, tmp_path / "original.eml")
    assert (status, err) == (0, "")
    assert mime.is_sealed(sealed)
    for _ in range(2):  # the key is in the store now, so opening can be repeated
        status, err, opened = await run("open", "--config", bob.config_file, "-", stdin=sealed)
        assert (status, err) == (0, "")
        assert opened == mails.random_attachment()


def _with_certificates(
    directory: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities, policy: str
) -> list[Site]:
    return [
        make_site(
            directory / name, name, state=kmes.state_dir, kme_url=url, outgoing=sink.address, identities=identities,
            policies={"default.toml": policy + "\n"},
        )
        for name, url in zip(("alice", "bob"), kmes.urls, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "policy",
    ['levels = ["otp"]', 'levels = ["pqc"]\n', 'levels = ["pqc+aes"]\n',
     'levels = ["rsa"]\n', 'levels = ["rsa+aes"]\n'],
)  # fmt: skip
async def test_seal_and_open_work_on_files_at_every_level(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities, policy: str
) -> None:
    sites = _with_certificates(tmp_path, kmes, sink, identities, policy)
    status, err, sealed = await run("seal", "--config", sites[0].config_file, *ADDRESSES, "-", stdin=mails.eight_bit())
    assert (status, err) == (0, "")
    status, err, opened = await run("open", "--config", sites[1].config_file, "-", stdin=sealed)
    assert (status, err, opened) == (0, "", mails.eight_bit())


@pytest.mark.promise("Nobody opens mail with `qumail-relay open` without a record")
async def test_open_leaves_a_record_of_what_it_decrypted_each_time_before_anybody_has_it(
    sites: tuple[Site, Site],
) -> None:
    alice, bob = sites
    _, _, sealed = await run("seal", "--config", alice.config_file, *ADDRESSES, "-", stdin=mails.plain())
    for number in (1, 2):
        assert (await run("open", "--config", bob.config_file, "-", stdin=sealed))[0] == 0
        found = list(records(bob.config.audit_directory, events=["opened"]))
        assert len(found) == number
    said = found[0]
    assert (said["peer"], said["level"], len(said["key_IDs"])) == ("alice", "aes", 1)
    assert said["message"] == hashlib.sha256(sealed).hexdigest()
    assert said["by"] == getpass.getuser()
    secret = AddressHash(SiteSecret.load(bob.config.store.secret))
    assert said["sender"] in secret.spellings("ann@alice.example")
    assert said["recipients"] == [secret.write("ben@bob.example")]
    assert verify(bob.config.audit_directory).problems == ()
    status, _, opened = await run("open", "--config", bob.config_file, "-", stdin=mails.plain())
    assert (status, opened, len(list(records(bob.config.audit_directory)))) == (1, b"", 2), "nothing was decrypted"
    [path] = bob.config.audit_directory.glob("*.jsonl")
    path.unlink()
    path.mkdir()
    status, err, opened = await run("open", "--config", bob.config_file, "-", stdin=sealed)
    assert (status, opened) == (1, b"")
    assert "the audit record cannot be written" in err


@pytest.mark.promise("Nobody opens mail with `qumail-relay open` without a record")
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
@pytest.mark.parametrize("level", ["aes", "rsa+aes"])
async def test_openssl_opens_mail_with_the_key_that_was_taken_out_on_record(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities, level: str
) -> None:
    """By the commands of deploy/AUDIT.md; those for the layer of rsa inside are typed in unit/schemes/test_certified.py."""
    alice, bob = _with_certificates(tmp_path, kmes, sink, identities, f'levels = ["{level}"]')
    section = (Path(__file__).parents[3] / "deploy/AUDIT.md").read_text().partition("## Opening a mail in ten years")[2]
    _, taking, later, *_ = re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert taking == "qumail-relay open --keys sealed.eml  >key.txt\n"
    _, _, sealed = await run("seal", "--config", alice.config_file, *ADDRESSES, "-", stdin=mails.plain())
    (tmp_path / "sealed.eml").write_bytes(sealed)
    status, err, keys = await run("open", "--config", bob.config_file, "--keys", tmp_path / "sealed.eml")
    assert (status, err) == (0, "")
    [said] = records(bob.config.audit_directory, events=["opened"])
    assert said["keys_out"] is True
    assert [bytes.fromhex(keys.decode().split()[0]).decode()] == said["key_IDs"]
    (tmp_path / "key.txt").write_bytes(keys)
    subprocess.run(["sh", "-e", "-c", later], cwd=tmp_path, capture_output=True, check=True)
    inside = (tmp_path / "inside").read_bytes()
    if level == "aes":
        assert inside == mails.plain()
    else:
        assert cms.decode_enveloped(inside).recipients[0].certificate.ski  # type: ignore[union-attr]


async def test_mail_without_quantum_keys_gives_none_and_leaves_no_record(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities
) -> None:
    alice, bob = _with_certificates(tmp_path, kmes, sink, identities, 'levels = ["rsa"]')
    _, _, sealed = await run("seal", "--config", alice.config_file, *ADDRESSES, "-", stdin=mails.plain())
    status, err, keys = await run("open", "--config", bob.config_file, "--keys", "-", stdin=sealed)
    assert (status, keys, bob.config.audit_directory.exists()) == (1, b"", False)
    assert "no quantum key" in err


async def test_sealing_one_file_takes_one_key(sites: tuple[Site, Site], kmes: DevelopmentKMEs) -> None:
    status, _, _ = await run("seal", "--config", sites[0].config_file, *ADDRESSES, "-", stdin=mails.plain())
    assert status == 0
    assert kmes.link.issued.total() == 1


async def test_a_file_with_lf_line_ends_is_taken_as_mail(sites: tuple[Site, Site]) -> None:
    alice, bob = sites
    unix = mails.eight_bit().replace(b"\r\n", b"\n")
    _, _, sealed = await run("seal", "--config", alice.config_file, *ADDRESSES, "-", stdin=unix)
    _, _, opened = await run("open", "--config", bob.config_file, "-", stdin=sealed)
    assert opened == mails.eight_bit()


async def test_open_that_is_stopped_keeps_the_key_that_is_on_its_way(
    tmp_path: Path, sink: Sink, kmes: DevelopmentKMEs
) -> None:
    state, (first, second) = kmes.state_dir, kmes.urls
    alice = make_site(tmp_path / "alice", "alice", state=state, kme_url=first, outgoing=sink.address)
    bob = make_site(tmp_path / "bob", "bob", state=state, kme_url=second, incoming=sink.address)
    async with assembly.parts(alice.config, prefetch=False) as parts:
        mail = Mail(Envelope("ann@alice.example", (Recipient("ben@bob.example"),)), mails.plain())
        sealed = (await parts.sealer.seal(mail)).copies[0].message
    (tmp_path / "sealed.eml").write_bytes(sealed)
    answer = asyncio.Event()
    kmes.km2.misbehave("dec_keys", "late", times=None, until=answer)
    process = await relay_command.start("open", "--config", bob.config_file, tmp_path / "sealed.eml")
    while not kmes.link.delivered:
        await kmes.km2.next_request()
    for _ in range(2):  # a second one is no reason to let the key go
        process.terminate()
    answer.set()
    assert await process.wait() in (0, 1), "it ended by itself"
    status, err, opened = await run("open", "--config", bob.config_file, tmp_path / "sealed.eml")
    assert (status, err, opened) == (0, "", mails.plain())


async def test_open_says_what_is_wrong(sites: tuple[Site, Site]) -> None:
    alice, bob = sites
    status, err, out = await run("open", "--config", bob.config_file, "-", stdin=mails.plain())
    assert (status, out) == (1, b"")
    assert "not sealed for this site" in err
    _, _, sealed = await run("seal", "--config", alice.config_file, *ADDRESSES, "-", stdin=mails.plain())
    changed = mime.sealed_message(b"", mime.sealed_content(sealed)[:-1] + b"?")
    status, err, out = await run("open", "--config", bob.config_file, "-", stdin=changed)
    assert (status, out) == (1, b"")
    assert "BadTag" in err


async def test_seal_and_open_that_cannot_write_all_of_it_say_so(sites: tuple[Site, Site]) -> None:
    alice, bob = sites
    _, _, sealed = await run("seal", "--config", alice.config_file, *ADDRESSES, "-", stdin=mails.plain())
    (bob.directory / "sealed.eml").write_bytes(sealed)
    (alice.directory / "plain.eml").write_bytes(mails.plain())
    for arguments in (
        ("open", "--config", bob.config_file, bob.directory / "sealed.eml"),
        ("seal", "--config", alice.config_file, *ADDRESSES, alice.directory / "plain.eml"),
    ):
        with Path("/dev/full").open("wb") as full, tempfile.TemporaryFile() as err:
            process = await relay_command.start(*arguments, stdout=full, stderr=err)
            status = await process.wait()
            err.seek(0)
            assert (status, err.read()) == (1, b"standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("ready", ["missing/ready", "policies", "/proc/ready"])
async def test_serve_that_cannot_write_its_ready_file_says_so_and_costs_no_key(
    sites: tuple[Site, Site], kmes: DevelopmentKMEs, ready: str
) -> None:
    alice = sites[0]
    path = alice.directory / ready
    status, err, _ = await run("serve", "--config", alice.config_file, "--ready-file", path)
    assert status == 1
    assert err.splitlines()[-1].startswith(f"{path}: cannot be written: ")
    assert kmes.link.issued.total() == 0


async def test_seal_never_gives_plaintext(sites: tuple[Site, Site]) -> None:
    sites[0].write_policies({"default.toml": 'levels = ["plaintext"]\n'})
    status, err, out = await run("seal", "--config", sites[0].config_file, *ADDRESSES, "-", stdin=mails.plain())
    assert (status, out) == (1, b"")
    assert "plaintext" in err


async def test_check_finds_nothing_wrong_with_a_good_site(sites: tuple[Site, Site]) -> None:
    status, err, out = await run("check", "--config", sites[0].config_file)
    assert (status, err) == (0, "")
    assert b"KME kme" in out
    assert b"WRONG" not in out


async def test_check_names_everything_that_is_wrong(
    sites: tuple[Site, Site], kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = sites[0]
    site.write_policies({"default.toml": 'levels = ["ase"]\n'})
    (site.directory / "site.secret").write_bytes(b"short")
    await kmes.stop()
    await sink.stop()
    status, _, out = await run("check", "--json", "--config", site.config_file)
    await kmes.start()
    await sink.start()
    assert status == 1
    wrong = {finding["what"]: finding["problems"] for finding in json.loads(out) if finding["problems"]}
    assert set(wrong) == {"policies", "store secret", "KME kme", "outgoing next hop"}
    assert "default.toml:1" in wrong["policies"][0]


async def test_check_says_when_the_store_cannot_be_written(sites: tuple[Site, Site]) -> None:
    site = sites[0]
    async with assembly.parts(site.config):
        pass
    with closing(sqlite3.connect(site.directory / "relay.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        status, _, out = await run("check", "--json", "--config", site.config_file)
    assert status == 1
    [problems] = [finding["problems"] for finding in json.loads(out) if finding["what"] == "store"]
    assert "cannot be written" in problems[0]


async def wrong(site: Site) -> dict[str, list[str]]:
    """What `check` says is wrong, which its exit status tells as well."""
    status, _, out = await run("check", "--json", "--config", site.config_file)
    found = {finding["what"]: finding["problems"] for finding in json.loads(out) if finding["problems"]}
    assert status == bool(found)
    return found


@pytest.mark.parametrize("file", ["with another", "gone"])
async def test_check_says_which_line_of_the_secrets_file_is_missing_for_what_the_store_holds(
    sites: tuple[Site, Site], file: str
) -> None:
    bob = sites[1]
    secret = bob.config.store.secret
    older = SiteSecret.load_or_create(secret)
    async with await open_store(bob.config.store.database, older) as store:
        await store.received.put("alice-bob", "2", {"one": bytes(32), "two": bytes(32)})
    secret.unlink()
    if file == "with another":
        SiteSecret.load_or_create(secret)
    [problem] = (await wrong(bob))["store"]
    assert secret.exists() == (file == "with another")
    assert problem.startswith(f"2 keys and messages are under site secret {older.ids[0]}, whose line {secret} lacks")


@pytest.mark.parametrize(
    ("spool", "what"), [("keys.spool", "received keys"), ("sent.recent", "sent mails"), ("", "state directory")]
)
async def test_check_says_when_what_must_be_written_at_once_cannot_be(
    sites: tuple[Site, Site], tmp_path: Path, spool: str, what: str
) -> None:
    bob = sites[1]
    if spool:
        path = bob.directory / spool
        path.touch()
    else:
        path = Path("/proc")
        text = bob.config_file.read_text()
        bob.config_file.write_text(re.sub('database = ".*"', 'database = "/proc/nothing/relay.db"', text))
    [problem] = (await wrong(bob))["state files" if spool else what]
    assert problem.startswith(f"{path}: ")
    assert ("no relay starts" if spool == "sent.recent" else "(451)") in problem
    if spool:
        path.unlink()
        path.symlink_to("/proc/self/task", target_is_directory=True)
        SiteSecret.load_or_create(bob.config.store.secret)
        [problem] = (await wrong(bob))[what]
        assert "no file can be made there" in problem


async def test_check_looks_at_all_of_a_site_that_has_served_and_leaves_nothing(sites: tuple[Site, Site]) -> None:
    sites[1].write_policies({"alice.example.toml": 'levels = ["aes"]\nrequire = "sealed"\n'})
    async with app.running(sites[1].config):
        async with asyncio.timeout(30):
            while not list(newest_first(sites[1].config.audit_directory)):
                await asyncio.sleep(0.01)  # then all that a start writes is there
        before = set(sites[1].directory.rglob("*"))
        assert await wrong(sites[1]) == {}
    left = {
        path
        for path in sites[1].directory.rglob("*")
        if path.suffix not in (".spool", ".sent") and path.name != "alarms.json"
    }
    assert left <= before  # those two are the relay's


@pytest.mark.parametrize(
    ("directory", "problem"),
    [("/proc/nothing/audit", "No such file or directory"), ("relay.toml", "Not a directory")],
)
@pytest.mark.parametrize("when_unwritable", ["deliver", "hold"])
async def test_check_says_when_the_audit_record_cannot_be_written(
    sites: tuple[Site, Site], directory: str, problem: str, when_unwritable: str
) -> None:
    alice = sites[0]
    with alice.config_file.open("a") as config:
        config.write(f'\n[audit]\ndirectory = "{directory}"\nwhen_unwritable = "{when_unwritable}"\n')
    [found] = (await wrong(alice))["audit record"]
    assert problem in found
    assert ("all mail is held" in found) == (when_unwritable == "hold")


async def test_check_says_when_the_disk_is_full(sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a relay needs is smaller than what is free, and it does not get to be asked for."""
    _, found = await check._all(sites[0].config_file, trial_keys=False)
    assert not [what for what, _, problems in found if problems]
    monkeypatch.setattr(sqlite, "ROOM_TO_START", 2**80)
    _, found = await check._all(sites[0].config_file, trial_keys=False)
    [(what, _, [problem])] = [state for state in found if state[2]]
    assert what == "state directory"
    assert "make room" in problem


@pytest.mark.parametrize("command", ["check", "serve", "policy check"])
async def test_a_configuration_with_a_fault_is_named_with_file_and_line(tmp_path: Path, command: str) -> None:
    (tmp_path / "relay.toml").write_text('[site]\nnames = "x"\n')
    status, err, out = await run(*command.split(), "--config", tmp_path / "relay.toml")
    assert status == 1
    assert "relay.toml:2: site.names: unknown setting; did you mean 'name'?" in err + out.decode()


async def test_output_that_cannot_be_written_is_one_line_and_1(sites: tuple[Site, Site]) -> None:
    alice, _ = sites
    async with relay_process(alice) as relay:
        assert (await submit(relay.addresses["outgoing"], mails.plain())).code == 250
    config = ("--config", str(alice.config_file))
    for unbuffered, *words in (
        ("", "--help"), ("", "--version"), ("1", "--version"), ("", "check", *config), ("1", "check", *config),
        ("", "audit", "export", *config),
    ):  # fmt: skip
        with Path("/dev/full").open("wb") as full:
            ended = await asyncio.to_thread(
                subprocess.run, (sys.executable, "-m", "relay", *words), stdout=full, stderr=subprocess.PIPE, text=True,
                env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            )  # fmt: skip
        said = "standard output cannot be written: No space left on device\n"
        assert (ended.returncode, ended.stderr) == (1, said), words


async def test_output_that_is_closed_is_one_line_and_1(sites: tuple[Site, Site]) -> None:
    alice, _ = sites
    async with relay_process(alice) as relay:
        assert (await submit(relay.addresses["outgoing"], mails.plain())).code == 250
    for command in ("--version", "check --json", "audit export --format csv"):
        config = [] if command == "--version" else ["--config", str(alice.config_file)]
        ended = await asyncio.to_thread(
            subprocess.run, ("sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "relay", *command.split(), *config),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = "standard output cannot be written: Bad file descriptor\n"
        assert (ended.returncode, ended.stderr) == (1, said), command


async def test_what_a_terminal_has_no_letters_for_is_shown_by_numbers(tmp_path: Path) -> None:
    directory = tmp_path / "ümläut"
    directory.mkdir()
    ended = await asyncio.to_thread(
        subprocess.run, (sys.executable, "-m", "relay", "check", "--config", directory / "relay.toml"),
        capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert ended.returncode == 1
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize("options", [(), ("--json",), ("--before-start",)])
async def test_a_loop_of_links_in_place_of_relay_toml_is_said_to_be_one(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    loop = tmp_path / "relay.toml"
    loop.symlink_to(loop)
    status, said, out = await run("check", "--config", loop, *options)
    assert status == 1
    assert f"{loop}: Too many levels of symbolic links" in " ".join(said.split() + out.decode().split())


@pytest.mark.parametrize("name", ["audit", "relay.db", "site.secret"])
async def test_a_loop_of_links_in_place_of_what_the_relay_writes_is_said_to_be_one(
    sites: tuple[Site, Site], name: str
) -> None:
    alice, _ = sites
    loop = alice.directory / name
    loop.symlink_to(loop)
    for command in ("check", "serve"):
        status, said, out = await run(command, "--config", alice.config_file)
        assert status == 1
        assert "Too many levels of symbolic links" in " ".join(said.split() + out.decode().split())


@pytest.mark.parametrize(
    ("name", "remedy", "starts"),
    [
        ("sent.recent", "is no directory: move it away; until then no relay starts", False),
        (
            "audit",
            "cannot be written: Not a directory: move it away, or name another directory (audit.directory); until it can",
            True,
        ),
        ("site.secret", "holds no site secret: base64 of 32 bytes: put it back from its backup", False),
    ],
)
async def test_check_says_what_to_do_about_a_file_in_a_wrong_place(
    sites: tuple[Site, Site], name: str, remedy: str, starts: bool
) -> None:
    alice, _ = sites
    (alice.directory / name).touch(mode=0o600)
    status, _, out = await run("check", "--config", alice.config_file)
    assert status == 1
    assert f"{alice.directory / name}: {remedy}" in " ".join(out.decode().split())
    if not starts:
        status, said, _ = await run("serve", "--config", alice.config_file)
        assert status == 1
        assert str(alice.directory / name) in said


async def test_wrong_usage_ends_with_2(sites: tuple[Site, Site]) -> None:
    for arguments in (["seal"], ["nonsense"], ["kme", "--port", "1"], ["open", "--config", "x", "/no/such/file"]):
        status, err, _ = await run(*arguments)
        assert (status, "Usage" in err) == (2, True), arguments


async def test_every_command_explains_itself() -> None:
    status, _, out = await run("--help")
    commands = re.findall(r"^  ([a-z]+)  ", out.decode(), re.MULTILINE)
    assert status == 0
    assert {"serve", "check", "policy", "seal", "open", "kme"} <= set(commands)
    for command in commands:
        status, _, out = await run(command, "--help")
        assert (status, b"Usage" in out) == (0, True), command


@pytest.mark.parametrize("setting", ["listen", "lmtp", "milter"])
async def test_serve_that_cannot_listen_says_so_and_costs_neither_a_key_nor_a_file(
    sites: tuple[Site, Site], kmes: DevelopmentKMEs, sink: Sink, setting: str
) -> None:
    alice = sites[0]
    busy = 'listen = "127.0.0.1:0"\nlmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"'
    busy = busy.replace(f'{setting} = "127.0.0.1:0"', f'{setting} = "{sink.address}"')
    alice.config_file.write_text(alice.config_file.read_text().replace('listen = "127.0.0.1:0"', busy))
    before = set(alice.directory.rglob("*"))
    status, err, _ = await run("serve", "--config", alice.config_file)
    assert status == 1
    assert f"outgoing.{setting}: cannot listen on {sink.address}: Address already in use" in err
    assert (kmes.link.issued.total(), set(alice.directory.rglob("*")) - before) == (0, set())


async def test_the_development_key_servers_say_where_they_are_and_that_they_are_not_quantum(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "relay", "kme", "--port", "0", "--port", "0", "--state", str(tmp_path / "state"),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert process.stdout is not None
    lines = [(await process.stdout.readline()).decode() for _ in range(5)]
    process.terminate()
    assert await process.wait() == 0
    assert "KM1" in lines[0]
    assert f"QUMAIL_KME_STATE={tmp_path / 'state'}" in lines[3]
    assert "NOT quantum" in lines[4]
    for name in ("ca.pem", "sae-1.pem", "sae-1.key", "sae-2.pem", "sae-2.key"):
        assert (tmp_path / "state" / name).is_file()


@pytest.mark.parametrize("umask", [0o002, 0o077][: sized(1, 2)], ids="umask {:03o}".format)
async def test_the_demonstration_ends_in_demo_ok(umask: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "deploy" / "demo.py"), "--once", "--kme-port", "0", "--kme-port", "0",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, umask=umask,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert out.decode().splitlines()[-1].startswith("DEMO OK")


async def test_a_demonstration_that_cannot_start_says_why(sink: Sink) -> None:
    taken: TCPAddress = sink.address
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "deploy" / "demo.py"), "--once", "--kme-port", str(taken.port), "--kme-port", "0",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 1
    assert out.decode().splitlines()[-1].startswith("DEMO FAILED: ")
    assert str(taken.port) in out.decode().splitlines()[-1]


async def test_keys_status_says_what_the_kmes_have_and_what_the_serving_relay_used(sites: tuple[Site, Site]) -> None:
    alice, _ = sites
    status, err, out = await run("keys", "status", "--json", "--config", alice.config_file)
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert (report["source"], report["pools"][0]["stored_keys"]) == ("the KMEs", 10_000)
    async with relay_process(alice) as relay:
        assert (await submit(relay.addresses["outgoing"], mails.plain())).code == 250
        status, err, out = await run("keys", "status", "--config", alice.config_file)
    assert (status, err) == (0, "")
    assert b"from the serving relay" in out
    assert b"bob" in out


async def test_keys_status_with_a_kme_in_trouble_ends_with_1(sites: tuple[Site, Site], kmes: DevelopmentKMEs) -> None:
    await kmes.stop()
    status, _, out = await run("keys", "status", "--json", "--config", sites[0].config_file)
    await kmes.start()
    assert (status, bool(json.loads(out)["pools"][0]["trouble"])) == (1, True)


async def test_the_site_secret_is_rotated_and_received_keys_stay_readable(sites: tuple[Site, Site]) -> None:
    alice, bob = sites
    _, _, sealed = await run("seal", "--config", alice.config_file, *ADDRESSES, "-", stdin=mails.plain())
    await run("open", "--config", bob.config_file, "-", stdin=sealed)
    status, _, out = await run("keys", "rotate-secret", "--config", bob.config_file)
    assert (status, b"older ones kept: 1" in out) == (0, True)
    status, _, out = await run("keys", "reseal", "--config", bob.config_file)
    assert (status, out) == (0, b"1 keys and messages sealed anew\n")
    newest = next(line for line in (bob.directory / "site.secret").read_text().splitlines() if line)
    (bob.directory / "site.secret").write_text(newest + "\n")
    status, err, opened = await run("open", "--config", bob.config_file, "-", stdin=sealed)
    assert (status, err, opened) == (0, "", mails.plain())
