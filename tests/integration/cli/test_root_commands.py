"""What root types works for the relay's user below that user's directories, whatever this user puts there meanwhile.
Standard: no command that root runs writes, follows or gives away anything there; deploy/RUNNING.md, Rights.

The long form takes a thousand attempts.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator

import click
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from relay.cli import cli
from relay.smime import CertificateDirectory
from relay.smime.directory import fingerprint
from tests.testlib.as_root import Happened, attempts
from tests.testlib.long import sized
from tests.testlib.roots_site import (
    Place,
    nobody,
    place as place,  # a fixture
)
from tests.testlib.smime import certified

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")

ATTEMPTS = sized(2, 1000)
"""Attempts of each race."""


def tell(what: str, happened: Happened) -> None:
    """For the long form."""
    if ATTEMPTS > 100:
        report = f"{what}: {len(happened.ended)} attempts, {happened.exchanges} exchanges, {dict(happened.statuses)}"
        sys.stderr.write(f"\n{report}\n")


def nothing_of_root_was_touched(happened: Happened, what: str) -> None:
    tell(what, happened)
    assert happened.touched == [], happened.said
    assert happened.as_root == [], happened.said
    assert [each.said for each in happened.ended if each.status == "traceback"] == []


BOBS, PEERS = ("--domain", "bob.example"), ("--peer-domain", "bob.example")
"""What is expected of Bob."""
PINNING = {
    "accept": ("identity", "accept", "--yes", *BOBS),
    "import": ("identity", "import", "--yes", *BOBS),
}


@pytest.mark.parametrize("command", PINNING)
def test_a_link_in_place_of_the_peers_directory_has_root_write_nothing_elsewhere(place: Place, command: str) -> None:
    (place.state / "peers").rmdir()
    (place.state / "peers").symlink_to(place.victim)
    place.give()
    happened = attempts(
        *PINNING[command], *place.config, str(place.document), victims=[place.victim], below=place.state
    )
    nothing_of_root_was_touched(happened, command)


@pytest.mark.parametrize("command", PINNING)
def test_a_peers_directory_that_is_exchanged_for_a_link_all_the_time_has_root_write_nothing_elsewhere(
    place: Place, command: str
) -> None:
    (place.state / "other").symlink_to(place.victim)
    place.give()
    happened = attempts(
        *PINNING[command], *place.config, str(place.document),
        number=ATTEMPTS, victims=[place.victim], below=place.state, undo=[(place.state / "peers", "bob.json")],
        adversary=[("exchange", place.state / "peers", place.state / "other")],
    )  # fmt: skip
    assert happened.exchanges > ATTEMPTS
    nothing_of_root_was_touched(happened, command)


@pytest.mark.promise("The holder of the relay's account does not become root by root's commands")
@pytest.mark.parametrize("command", PINNING)
def test_a_peers_directory_that_becomes_a_link_once_it_was_made_is_not_given_away(place: Place, command: str) -> None:
    peers = place.state / "peers"
    happened = attempts(
        *PINNING[command], *place.config, str(place.document),
        number=ATTEMPTS, victims=[place.victim], below=place.state,
        adversary=[("rmdir", peers), ("symlink", place.victim, peers), ("unlink", peers)],
    )  # fmt: skip
    nothing_of_root_was_touched(happened, command)


def every_command(place: Place) -> dict[str, list[str]]:
    """An invocation of each command that has --config, by its name; those that make something come last."""
    at, out = list(place.config), place.victim.parent / "out"
    out.mkdir(exist_ok=True)
    message, log, sets = place.victim.parent / "message", place.victim.parent / "log", place.site / "sets/2"
    message.write_text("From: ann@alice.example\nTo: ben@bob.example\n\nThe body.\n")
    log.write_text("")
    document, certificate = str(place.document), place.victim.parent / "ben.pem"
    theirs = certified("ben@bob.example").certificate
    certificate.write_bytes(theirs.public_bytes(Encoding.PEM))
    CertificateDirectory(place.state / "offered-certificates").put("ben@bob.example", [theirs])
    place.give()
    return {
        "check": ["check", *at, "--no-next-hops", "--before-start"],
        "serve": ["serve", *at, "--check"],
        "keys status": ["keys", "status", *at],
        "quarantine list": ["quarantine", "list", *at],
        "quarantine show": ["quarantine", "show", *at, "nothing"],
        "quarantine release": ["quarantine", "release", *at, "nothing"],
        "quarantine drop": ["quarantine", "drop", *at, "nothing"],
        "imap once": ["imap", "once", *at],
        "identity show": ["identity", "show", *at],
        "identity export": ["identity", "export", *at, "-o", f"{out}/export"],
        "identity invite": ["identity", "invite", *at, "-o", f"{out}/invite"],
        "identity dkim show": ["identity", "dkim", "show", *at],
        "identity dkim new": ["identity", "dkim", "new", *at, "--algorithm", "ed25519", "alice.example", "s"],
        "identity new": ["identity", "new", *at, "--renew"],
        "identity import": ["identity", "import", *at, "--yes", *BOBS, document],
        "identity accept": ["identity", "accept", *at, "--yes", *BOBS, document],
        "keys plan": ["keys", "plan", *at, "--mails", "10", "--size", "75K", "--level", "pqc"],
        "keys trial": ["keys", "trial", *at, "--wait", "0"],
        "open": ["open", *at, str(message)],
        "seal": ["seal", *at, "--from", "ann@alice.example", "--to", "ben@bob.example", str(message)],
        "users add": ["users", "add", *at, "--no-password", "ann@alice.example"],
        "users list": ["users", "list", *at],
        "users check": ["users", "check", *at],
        "users remove": ["users", "remove", *at, "ann@alice.example"],
        "audit verify": ["audit", "verify", *at],
        "audit export": ["audit", "export", *at, "-o", f"{out}/records"],
        "audit checkpoint": ["audit", "checkpoint", *at, "-o", f"{out}/checkpoint"],
        "ledger show": ["ledger", "show", *at],
        "trace": ["trace", *at, "ABCDEF", str(log)],
        "certificates import": ["certificates", "import", *at, "--yes", str(certificate)],
        "certificates list": ["certificates", "list", *at],
        "certificates accept": ["certificates", "accept", *at, "--fingerprint", fingerprint(theirs), "ben@bob.example"],
        "certificates remove": ["certificates", "remove", *at, "ben@bob.example"],
        "groups fetch": ["groups", "fetch", *at],
        "store accept": ["store", "accept", *at],
        "backup": ["backup", *at, f"{out}/backup"],
        "policy check": ["policy", "check", *at],
        "policy explain": ["policy", "explain", *at, "--offline", "--message", str(message), "a@alice.example", "b@bob.example"],
        "policy list": ["policy", "list", *at],
        "policy log": ["policy", "log", *at],
        "policy test": ["policy", "test", *at],
        "policy simulate": ["policy", "simulate", *at, str(message)],
        "policy diff": ["policy", "diff", *at, str(sets), str(sets)],
        "policy install": ["policy", "install", *at, str(sets)],
        "setup": ["setup", *at, "--yes", "--user", "nobody", "--postfix", "none", "--peer", document, *PEERS],
        "keys rotate-secret": ["keys", "rotate-secret", *at],
        "keys reseal": ["keys", "reseal", *at],
    }  # fmt: skip


GO_ON_AS_ROOT = {
    "serve", "identity export", "identity invite", "identity dkim new", "identity accept", "users add", "users list",
    "users check", "users remove", "audit checkpoint", "trace", "policy simulate", "policy install", "setup",
    "certificates import", "certificates list", "certificates remove",
    "certificates accept", "groups fetch",
}  # fmt: skip
"""Commands that have something to do as root too: what they do for the relay is all the same done as its user."""


def with_link_to_policies(place: Place) -> None:
    """As `policy install` wants it; there is one more set beside."""
    shutil.move(place.site / "policies", place.site / "sets-1")
    (place.site / "sets").mkdir()
    shutil.move(place.site / "sets-1", place.site / "sets/1")
    (place.site / "sets/1/alice.example.toml").write_text('levels = ["plaintext"]\nreason = "inside"\n')
    shutil.copytree(place.site / "sets/1", place.site / "sets/2")
    (place.site / "policies").symlink_to("sets/1")


def commands_with_config(group: click.Group, name: str = "") -> Iterator[str]:
    context = click.Context(group)
    for each in group.list_commands(context):
        command, path = group.get_command(context, each), f"{name} {each}".strip()
        if isinstance(command, click.Group):
            yield from commands_with_config(command, path)
        elif command is not None and any(option.name == "config_file" for option in command.params):
            yield path


@pytest.mark.promise("The holder of the relay's account does not become root by root's commands")
def test_nothing_that_root_types_works_as_root_below_what_the_relays_user_can_write(place: Place) -> None:
    with_link_to_policies(place)
    every = every_command(place)
    assert sorted(every) == sorted(commands_with_config(cli))
    happened = attempts(commands=list(every.values()), victims=[place.victim], below=place.state)
    nothing_of_root_was_touched(happened, "every command")
    ended = dict(zip(every, happened.ended, strict=True))
    assert {name for name, each in ended.items() if each.user == 0} == GO_ON_AS_ROOT
    assert {each.user for name, each in ended.items() if name not in GO_ON_AS_ROOT} == {nobody().uid}
    failed = {name: each.said for name, each in ended.items() if each.status}
    may_fail = {"check", "open", "imap once", "identity dkim show", "trace", "quarantine show",
                "quarantine release", "quarantine drop", "keys trial", "groups fetch"}  # fmt: skip
    assert set(failed) <= may_fail, failed
    assert {path.stat().st_uid for path in place.state.rglob("*")} == {nobody().uid}
    assert (place.site / "policies/bob.example.toml").stat().st_uid == 0


@pytest.mark.promise("The holder of the relay's account does not become root by root's commands")
def test_links_in_place_of_all_that_the_relay_writes_lead_root_nowhere(place: Place) -> None:
    with_link_to_policies(place)
    every = every_command(place)
    shutil.copytree(place.state / "identity", place.victim / "identity")
    shutil.copy(place.state / "site.secret", place.victim / "site.secret")
    files = (
        "site.secret",
        "relay.db",
        "users",
        "keys.json",
        "alarms.json",
        "former_peers.json",
        "held.json",
        "restore.check",
    )
    directories = (
        "identity", "peers", "audit", "audit.pending", "keys.spool", "sent.recent", "policies.kept", "dkim",
        "offered-certificates",
    )  # fmt: skip
    for name in (*files, *directories):
        path = place.state / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        led_to = place.victim / name
        if not led_to.exists():
            led_to.write_text("root's\n") if name in files else led_to.mkdir(mode=0o700)
        path.symlink_to(led_to)
    place.give()
    happened = attempts(commands=list(every.values()), victims=[place.victim], below=place.state)
    nothing_of_root_was_touched(happened, "links")


def test_a_copy_where_the_relays_user_cannot_write_is_refused_before_anything_is_made(place: Place) -> None:
    closed, anothers = place.site.parent / "closed", place.site.parent / "anothers"
    closed.mkdir(mode=0o700)
    anothers.mkdir(mode=0o755)
    os.chown(anothers, 4242, 4242)
    for above, cause in ((closed, f"{closed}: Permission denied"), (anothers, f"{anothers} is user 4242's")):
        [ended] = attempts("backup", *place.config, str(above / "copy")).ended
        assert ended.status == 1
        assert f"{above}/copy: nobody, as whom the relay runs, has to write there and cannot ({cause})" in ended.said
        assert "install -d -m 700 -o nobody /var/backups/qumail-relay" in ended.said
        assert list(above.iterdir()) == []


@pytest.mark.promise("The identity of the relay's user cannot be forged from below")
@pytest.mark.parametrize("secret", ["link", "hard link", "nothing", "directory", "fifo"])
def test_whatever_the_relays_user_puts_in_place_of_its_secret_root_goes_on_as_that_user(
    place: Place, secret: str
) -> None:
    path = place.state / "site.secret"
    path.unlink()
    if secret == "link":
        path.symlink_to(place.file)
    elif secret == "hard link":
        path.hardlink_to(place.file)
    elif secret == "directory":
        path.mkdir()
    elif secret == "fifo":
        os.mkfifo(path)
    os.chown(place.state, nobody().uid, nobody().gid)
    commands = [
        (*words, *place.config)
        for words in (("check", "--before-start"), ("keys", "status"), ("quarantine", "list"), ("ledger", "show"))
    ]
    happened = attempts(commands=commands, victims=[place.victim], below=place.state)
    nothing_of_root_was_touched(happened, secret)
    assert {each.user for each in happened.ended} == {nobody().uid}


RACES: dict[str, tuple[tuple[str, ...], str]] = {
    "renewing": (("identity", "new", "--renew"), "identity"),
    "inviting": (("identity", "invite"), "identity"),
    "a DKIM key": (("identity", "dkim", "new", "--algorithm", "ed25519", "alice.example", "s"), "dkim"),
    "users": (("users", "add", "--no-password", "ann@alice.example"), "users.d"),
    "a new secret": (("keys", "rotate-secret"), "site.secret"),
    "the quarantine": (("quarantine", "list"), "site.secret"),
    "the store": (("quarantine", "list"), "relay.db"),
    "records": (("audit", "export"), "audit"),
    "a checkpoint": (("audit", "checkpoint"), "audit"),
    "check": (("check", "--before-start", "--no-next-hops"), "audit"),
    "setting up": (("setup", "--yes", "--user", "nobody", "--postfix", "none", "--peer", "bob.json", *PEERS), "peers"),
}
"""Each command with what is exchanged under it."""


@pytest.mark.promise("The holder of the relay's account does not become root by root's commands")
@pytest.mark.parametrize("name", RACES)
def test_what_is_exchanged_for_a_link_all_the_time_leads_root_nowhere(place: Place, name: str) -> None:
    words, exchanged = RACES[name]
    settings = place.site / "relay.toml"
    settings.write_text(settings.read_text().replace("state/users", "state/users.d/users"))
    path, led_to = place.state / exchanged, place.victim / exchanged
    if exchanged in ("site.secret", "relay.db"):
        path.touch()
        led_to.write_bytes(path.read_bytes())
    else:
        path.mkdir(mode=0o700, exist_ok=True)
        shutil.copytree(path, led_to)
    (place.state / "other").symlink_to(led_to)
    place.give()
    happened = attempts(
        *(str(place.document) if word == "bob.json" else word for word in words), *place.config,
        number=ATTEMPTS, victims=[place.victim], below=place.state,
        adversary=[("exchange", path, place.state / "other")],
        undo=[(path, name) for name in ("bob.json", "alice.example.s.pem", "users") if path.is_dir()],
    )  # fmt: skip
    assert happened.exchanges > ATTEMPTS
    nothing_of_root_was_touched(happened, name)


@pytest.mark.promise("A file that root names on the command line is opened as the owner of its place")
def test_a_file_that_is_named_in_the_relays_directory_is_written_and_read_as_the_relays_user(place: Place) -> None:
    (place.site / "policies/bob.example.toml").write_text('levels = ["pqc+aes", "pqc"]\n')
    private = place.victim / "private.pem"
    private.write_text("-----BEGIN PRIVATE KEY-----\nroot's\n")
    private.chmod(0o600)
    (place.state / "out").symlink_to(place.file)
    (place.state / "in").symlink_to(private)
    (place.state / "backups").symlink_to(place.victim)
    place.give()
    out, led = str(place.state / "out"), str(place.state / "in")
    commands = [
        ["identity", "export", *place.config, "-o", out],
        ["identity", "invite", *place.config, "-o", out],
        ["audit", "export", *place.config, "-o", out],
        ["audit", "checkpoint", *place.config, "-o", out],
        ["backup", *place.config, str(place.state / "backups/new")],
        ["seal", *place.config, "--from", "ann@alice.example", "--to", "ben@bob.example", led],
        ["open", *place.config, led],
        ["identity", "import", *place.config, "--yes", *BOBS, led],
        ["identity", "accept", *place.config, "--yes", *BOBS, led],
        ["audit", "verify", *place.config, "--checkpoint", led],
        ["trace", *place.config, "ABCDEF", led],
        ["policy", "simulate", *place.config, led],
        ["policy", "explain", *place.config, "--offline", "--message", led, "a@alice.example", "b@bob.example"],
        ["setup", *place.config, "--yes", "--user", "nobody", "--replace", "--domain", "alice.example", "--postfix",
         "none", "--kme", "https://localhost:1", "--sae-id", "2", "--kme-ca", led, "--kme-certificate", led, "--kme-key", led],
    ]  # fmt: skip
    happened = attempts(commands=commands, victims=[place.victim])
    nothing_of_root_was_touched(happened, "named")
    assert {each.status for each in happened.ended} == {1, 2}
    assert [each.said for each in happened.ended if "Permission denied" not in each.said] == []


@pytest.mark.promise("A file that root names on the command line is opened as the owner of its place")
def test_a_file_that_a_stranger_may_exchange_is_read_or_written_as_that_stranger(place: Place) -> None:
    """In /tmp and the like, where everybody may put what is not there yet."""
    public = place.site.parent / "public"
    public.mkdir()
    public.chmod(0o1777)
    out, link = public / "out", public / ".link"
    link.symlink_to(place.file)
    os.chown(link, nobody().uid, nobody().gid, follow_symlinks=False)
    happened = attempts(
        "identity", "invite", *place.config, "-o", str(out), number=ATTEMPTS, victims=[place.victim],
        adversary=[("symlink", place.file, out), ("unlink", out), ("rename", link, out), ("rename", out, link)],
    )  # fmt: skip
    assert happened.exchanges > ATTEMPTS
    nothing_of_root_was_touched(happened, "in a public directory")
