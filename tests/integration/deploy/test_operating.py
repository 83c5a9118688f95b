"""What deploy/OPERATING.md says to type is typed, block by block, on machines where the package is installed.
Standard: the document as it stands; systemctl is a stand-in, for the machines have no systemd.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.deploy.conftest import stand_in_for_systemd
from tests.testlib.identities import Identities
from tests.testlib.throwaway import Machine, throwaway_machine

DOCUMENT = (Path(__file__).parents[3] / "deploy" / "OPERATING.md").read_text()
STATE = "/var/lib/qumail-relay"
pytestmark = pytest.mark.timeout(900)  # scores of commands, of which each loads the relay up to three times
REQUIRED = 'levels = ["plaintext"]\nreason = "of no account"\nrequire = "sealed"\nunprotected = "quarantine"\n'
NOT_SEALED = """\
import smtplib
mail = b"From: ann@bob.example\\r\\nTo: ben@alice.example\\r\\nMessage-ID: <1@bob.example>\\r\\n\\r\\nThe body.\\r\\n"
smtplib.LMTP("127.0.0.1", 15034).sendmail("ann@bob.example", ["ben@alice.example"], mail)
"""


def blocks(title: str) -> list[str]:
    """The commands under a heading, as they stand."""
    return re.findall(
        r"^```sh\n(.*?)^```$", DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0], re.DOTALL | re.MULTILINE
    )


@pytest.fixture
def other(installed: Machine) -> Machine:
    """A machine with the package alone."""
    stand_in_for_systemd(installed)
    return installed


@pytest.fixture(scope="module")
def after_setup(
    after_installation: Machine, identities: Identities, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """Where nothing runs yet; its keys were made before, since RSA takes seconds."""
    with throwaway_machine(tmp_path_factory.mktemp("setup"), after_installation) as machine:
        stand_in_for_systemd(machine)
        shutil.copytree(identities.alice.directory, machine.path(f"{STATE}/identity"))
        machine.run("chown", "-R", "qumail-relay:qumail-relay", STATE)
        answers = "--yes --domain alice.example --kme none --postfix none"
        machine.run("sh", "-c", f"qumail-relay setup {answers}")
        machine.path("/etc/qumail-relay/policies/bob.example.toml").write_text(REQUIRED)
        yield machine


@pytest.fixture
def site(after_setup: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A relay that serves, with one mail in quarantine."""
    with throwaway_machine(tmp_path_factory.mktemp("site"), after_setup) as machine:
        machine.run("systemctl", "start", "qumail-relay")
        machine.run("/usr/bin/python3", "-c", NOT_SEALED)
        yield machine


def typed(machine: Machine, block: str) -> str:
    """One block at a root shell; `check` may find that no Postfix is there, everything else has to go well."""
    *commands, last = block.splitlines()
    checks = last.endswith("qumail-relay check")
    said = machine.run("bash", "-ec", "\n".join(commands if checks else [*commands, last]))
    return said + (machine.run("bash", "-c", last, may_fail=True) if checks else "")


def keys(machine: Machine) -> dict[str, bytes]:
    """The identity's files."""
    return {path.name: path.read_bytes() for path in machine.path(f"{STATE}/identity").iterdir() if path.is_file()}


def as_relay(machine: Machine, *arguments: str) -> str:
    return machine.run("runuser", "-u", "qumail-relay", "--", "qumail-relay", *arguments)


def as_relay_may_fail(machine: Machine, *arguments: str) -> str:
    return machine.run("runuser", "-u", "qumail-relay", "--", "qumail-relay", *arguments, may_fail=True)


def in_quarantine(machine: Machine) -> list[str]:
    return [each["reason"] for each in json.loads(as_relay(machine, "quarantine", "list", "--json"))]


def logged(machine: Machine) -> list[str]:
    lines = (line for line in machine.path("/run/relay.log").read_text().splitlines() if line.startswith("{"))
    return [str(json.loads(line)["event"]) for line in lines]


def until_logged(machine: Machine, event: str) -> None:
    deadline = time.monotonic() + 30
    while event not in logged(machine):
        assert time.monotonic() < deadline, logged(machine)
        time.sleep(0.1)


def filter_of(machine: Machine) -> str:
    return machine.run("postconf", "-h", "content_filter").strip()


def owners(machine: Machine) -> set[str]:
    return set(machine.run("find", STATE, "-printf", "%u:%g\n").split())


def test_what_was_backed_up_is_restored_on_a_machine_that_has_nothing(site: Machine, other: Machine) -> None:
    before = keys(site)
    assert in_quarantine(site) == ["unprotected"]
    state, rest, old = blocks("Backup")
    assert f"for {STATE}/relay.db" in typed(site, state)
    assert f"for {STATE}/relay.db" in typed(site, state), "as often as one likes"
    typed(site, rest)
    typed(site, old)
    archives = [f"/root/qumail-relay-{name}" for name in ("files.tar.gz", "identity.tar.gz", "site.secret")]
    backups = ["/var/backups/qumail-relay", *archives]
    assert site.run("stat", "--format=%a", *backups).split() == ["700", "600", "600", "600"]
    for path in backups:
        if site.path(path).is_dir():
            shutil.copytree(site.path(path), other.path(path))
        else:
            shutil.copy(site.path(path), other.path(path))
    restore, filters, look, accept, set_back = blocks("Restore")
    typed(other, restore)
    assert filter_of(other) == ""
    typed(other, filters)
    assert filter_of(other).startswith("qumail")
    assert logged(other).count("store_restored") == 1
    assert owners(other) == {"qumail-relay:qumail-relay"}
    assert keys(other) == before
    assert in_quarantine(other) == ["unprotected"]
    assert "0 messages" in typed(other, look)
    assert "if this one is meant" in as_relay_may_fail(other, "check")
    assert "is a copy that `qumail-relay backup` or an upgrade has made" in typed(other, accept)
    assert "if this one is meant" not in as_relay_may_fail(other, "check")
    # And again, over what is there; then as if by a snapshot.
    typed(other, restore)
    assert in_quarantine(other) == ["unprotected"]
    other.run("systemctl", "stop")
    typed(other, set_back)
    other.run("systemctl", "start")
    assert logged(other).count("store_restored") == 3
    assert "is older than" in typed(other, accept)


def test_an_upgrade_keeps_everything(site: Machine, package: Path) -> None:
    typed(site, blocks("Backup")[0])
    before = keys(site)
    shutil.copy(package, site.path(f"/root/{package.name}"))
    upgrade, go_back = blocks("Upgrade")
    assert "configuration" in typed(site, upgrade.replace("install ", "install --reinstall "))
    site.run("rm", "/run/relay.pid")  # the package has ended it; without systemd nobody starts it again
    site.run("systemctl", "start")
    assert (keys(site), in_quarantine(site)) == (before, ["unprotected"])
    site.run("systemctl", "stop")
    site.run("cp", "-a", f"{STATE}/relay.db", f"{STATE}/relay.db.schema-4")  # as a newer relay leaves it
    typed(site, go_back)
    site.run("systemctl", "start")
    assert (keys(site), in_quarantine(site)) == (before, ["unprotected"])
    assert "store_restored" not in logged(site)


def test_on_another_machine_all_goes_on_where_it_was(site: Machine, other: Machine) -> None:
    before = keys(site)
    leave, arrive = blocks("Another machine")
    typed(site, leave)
    for name in ("files", "state"):
        shutil.copy(site.path(f"/root/qumail-relay-{name}.tar.gz"), other.path("/root"))
    assert "outgoing.lmtp  127.0.0.1:15024: listens" in typed(other, arrive)
    assert filter_of(other).startswith("qumail")
    assert (keys(other), in_quarantine(other)) == (before, ["unprotected"])
    assert "store_restored" not in logged(other)


def test_identity_and_secret_are_renewed_and_what_lay_under_the_old_ones_can_still_be_read(site: Machine) -> None:
    identity, secret, older = blocks("Keys and certificates")
    before = site.path(f"{STATE}/site.secret").read_bytes()
    typed(site, identity)
    until_logged(site, "identity_reloaded")  # without a restart, which the next block brings
    assert json.loads(site.path("/root/alice.json").read_text())
    assert "keys and messages sealed anew" in typed(site, secret)
    typed(site, older)
    after = site.path(f"{STATE}/site.secret").read_bytes()
    assert len(after.splitlines()) == 1
    assert before not in after
    assert site.path("/root/qumail-relay-site.secret").read_bytes() == after
    assert "store_secret_missing" not in logged(site)
    [kept] = json.loads(as_relay(site, "quarantine", "list", "--json"))
    assert "The body." in as_relay(site, "quarantine", "show", "--raw", kept["id"])
    assert owners(site) == {"qumail-relay:qumail-relay"}


def test_after_uninstalling_nothing_is_left(site: Machine) -> None:
    [by_hand] = blocks("Uninstalling")
    typed(site, by_hand)
    assert site.run("sh", "-c", f"ls -d /etc/qumail-relay {STATE} 2>/dev/null", may_fail=True) == ""
    assert "qumail" not in site.path("/etc/passwd").read_text()


def test_each_block_of_the_document_is_typed_here() -> None:
    titles = re.findall(r"^## (.*)$", DOCUMENT, re.MULTILINE)
    every = {title: len(blocks(title)) for title in titles}
    assert {title: number for title, number in every.items() if number} == {
        "Backup": 3, "Restore": 5, "Upgrade": 2, "Another machine": 2, "Keys and certificates": 3, "Uninstalling": 1,
        "Credentials": 3,  # which test_two_machines.py types: they are systemd's
    }  # fmt: skip
