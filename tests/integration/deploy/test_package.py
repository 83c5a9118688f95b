"""The Debian package as an administrator meets it: built, installed, started, upgraded, removed, purged.
Standard: Debian Policy 6 and 10.7; each test is on a copy of this machine, of which nothing is left.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.version import Version

from tests.integration.deploy.conftest import DEBIAN, install, stand_in_for_systemd
from tests.testlib.throwaway import Machine

pytestmark = pytest.mark.timeout(900)
SCRIPTS = ("build", "postinst", "postrm", "prerm", "qumail-relay")
CONFIGURATION = "/etc/qumail-relay/relay.toml"
RELAY_TOML = """\
# edited by the administrator
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "sae-alice"

[outgoing]
listen = "127.0.0.1:15025"
next_hop = "127.0.0.1:15026"

[policies]
directory = "policies"

[store]
database = "/var/lib/qumail-relay/relay.db"
secret = "/var/lib/qumail-relay/site.secret"
"""
OF_DPKG = re.compile(
    r"/var/lib/dpkg/.*|/var/log/.*|/var/cache/(man|ldconfig|debconf)/.*|/etc/\.pwd\.lock|/etc/(passwd|group|shadow|gshadow|sub.id)-"
)
"""What dpkg and the tools for users remember of any package and user."""


@pytest.fixture(scope="module")
def predecessor(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a lower version, and with a file that the newer one has no more."""
    tree = tmp_path_factory.mktemp("predecessor") / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub("^Version: .*", "Version: 0.0.9", control.read_text(), flags=re.MULTILINE))
    (tree / "usr/lib/qumail-relay/of_before.py").touch()
    file = tree.with_name("qumail-relay_0.0.9.deb")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, file], check=True, capture_output=True)
    return file


def configure(machine: Machine) -> None:
    machine.path(CONFIGURATION).write_text(RELAY_TOML)
    machine.path("/etc/qumail-relay/policies/default.toml").write_text('levels = ["plaintext"]\n')
    machine.run("chgrp", "--recursive", "qumail-relay", "/etc/qumail-relay")


@contextmanager
def started(machine: Machine) -> Iterator[subprocess.Popen[str]]:
    """A relay that serves, as postinst says how to start it."""
    command = machine.command("runuser", "-u", "qumail-relay", "--", "qumail-relay", "serve")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            log = []
            while line := process.stderr.readline():
                log.append(line)
                if "relay_serves" in line:
                    break
            else:
                pytest.fail("".join(log))
            yield process
        finally:
            process.kill()


def greeting(machine: Machine) -> str:
    program = "import smtplib; print(smtplib.SMTP('127.0.0.1', 15025).ehlo('here')[0])"
    return machine.run("/usr/bin/python3", "-c", program)


CARRIED = """
from smtplib import SMTP
from aiosmtpd.controller import Controller

class NextHop:
    async def handle_DATA(self, server, session, envelope):
        got.append(envelope.content)
        return "250 taken"

got = []
next_hop = Controller(NextHop(), "127.0.0.1", 15026)
next_hop.start()
SMTP("127.0.0.1", 15025).sendmail("ann@alice.example", "x@other.example", b"Subject: x\\r\\n\\r\\nhello")
next_hop.stop()
print(*(b"hello" in each for each in got))
"""


def owner_and_mode(machine: Machine, path: str) -> str:
    return machine.run("stat", "--format=%U:%G %a", path).strip()


def test_a_bare_machine_gets_user_directories_and_the_next_step(machine: Machine, package: Path) -> None:
    said = install(machine, package)
    assert "qumail-relay setup" in said
    assert "not started" in said
    for name in ("", "/kme", "/policies"):
        assert owner_and_mode(machine, f"/etc/qumail-relay{name}") == "root:qumail-relay 750"
    assert owner_and_mode(machine, "/var/lib/qumail-relay") == "qumail-relay:qumail-relay 700"
    assert machine.run("getent", "passwd", "qumail-relay").strip().endswith(":/var/lib/qumail-relay:/usr/sbin/nologin")
    assert list(machine.path("/etc/qumail-relay").rglob("*.toml")) == []
    assert "qumail-relay, version " in machine.run("qumail-relay", "--version")
    assert machine.run("dpkg", "--verify", "qumail-relay") == ""
    # Again, as dpkg does after it was interrupted.
    before = machine.changed()
    machine.run("/var/lib/dpkg/info/qumail-relay.postinst", "configure", "0.0.9")
    assert machine.changed() == before


def version_of(tree: Path) -> str:
    program = f"root={tree}; . {DEBIAN.parent}/environment; version_of_tree"
    return subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def test_each_commit_has_a_higher_version_than_the_one_before(tmp_path: Path) -> None:
    shutil.copy(DEBIAN.parents[1] / "pyproject.toml", tmp_path)
    without_git = version_of(tmp_path)
    author = ("-c", "user.name=x", "-c", "user.email=x@alice.example")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "-C", tmp_path, "add", "pyproject.toml"], check=True)
    versions = [without_git]
    for _ in range(11):
        commit = ["git", "-C", str(tmp_path), *author, "commit", "-q", "--allow-empty", "-m", "x"]
        subprocess.run(commit, check=True)
        versions.append(version_of(tmp_path))
        assert version_of(tmp_path) == versions[-1]
    for lower, higher in pairwise(versions):
        assert Version(lower) < Version(higher)
        if shutil.which("dpkg"):
            subprocess.run(["dpkg", "--compare-versions", lower, "lt", higher], check=True)
    with (tmp_path / "pyproject.toml").open("a") as file:
        file.write("# edited\n")
    assert version_of(tmp_path) == f"{versions[-1]}.dirty"


INSTALLS_NOTHING = """
install_locked() (
    cd "$1"/lib/python*/site-packages
    mkdir qumail_relay-0.1.0.dist-info
    printf 'Name: qumail-relay\\nVersion: 0.1.0\\n' >qumail_relay-0.1.0.dist-info/METADATA
)
"""


def test_by_hand_the_version_names_the_commit_as_well(tmp_path: Path) -> None:
    (deploy := tmp_path / "tree/deploy").mkdir(parents=True)
    for name in ("install", "environment"):
        shutil.copy(DEBIAN.parent / name, deploy)
    shutil.copy(DEBIAN.parents[1] / "pyproject.toml", tmp_path / "tree")
    with (deploy / "environment").open("a") as file:
        file.write(INSTALLS_NOTHING)
    author = ("-c", "user.name=x", "-c", "user.email=x@alice.example")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "x")):
        subprocess.run(["git", "-C", tmp_path / "tree", *words], check=True)
    subprocess.run(["sh", deploy / "install", tmp_path / "opt"], check=True)
    program = "from importlib.metadata import version; print(version('qumail-relay'))"
    said = subprocess.run(
        [tmp_path / "opt/bin/python", "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() == version_of(tmp_path / "tree")
    assert "+1.g" in said


def test_the_command_says_the_version_of_its_package(installed: Machine) -> None:
    version = installed.run("dpkg-query", "--show", "--showformat=${Version}", "qumail-relay")
    assert installed.run("qumail-relay", "--version") == f"qumail-relay, version {version}\n"
    plain, _, of_commit = version.partition("+")
    assert version_of(DEBIAN.parents[1]).partition("+")[0] == plain
    assert re.fullmatch(r"(\d+\.g[0-9a-f]{7,}(\.dirty)?)?", of_commit)


def test_each_link_of_its_documents_leads_somewhere(installed: Machine) -> None:
    documents = installed.path("/usr/share/doc/qumail-relay")
    live = 0
    for document in documents.rglob("*.md"):
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in target and (path := target.partition("#")[0]):
                assert (document.parent / path).exists(), f"{document}: {target}"
                live += 1
    assert live > 50
    for name in ("deploy/THREATS.md", "relay/FORMAT.md", "deploy/SETTINGS.md", "policies/README.md"):
        assert (documents / name).exists()


def test_help_names_what_is_there(installed: Machine) -> None:
    assert "/usr/share/doc/qumail-relay/deploy" in installed.run("qumail-relay", "--help")
    assert "default: /etc/qumail-relay/relay.toml" in " ".join(installed.run("qumail-relay", "check", "--help").split())


def test_what_is_installed_does_not_change_by_being_used(installed: Machine) -> None:
    """Else root would leave files that no package owns; and nothing there names the place where it was built."""
    before = installed.changed()
    installed.run("qumail-relay", "check", "--help")
    installed.run("qumail-relay", "keys", "status", "--help")
    assert installed.changed() == before
    assert installed.run("grep", "-rlE", "/tmp/tmp[.]|site-packages/pip/", "/usr/lib/qumail-relay", may_fail=True) == ""


def test_check_names_what_is_not_as_it_was_installed(installed: Machine) -> None:
    installed.path(CONFIGURATION).write_text(RELAY_TOML)

    def found() -> list[str]:
        said = json.loads(installed.run("qumail-relay", "check", "--json", may_fail=True))
        return [problem for each in said if each["what"] == "program" for problem in each["problems"]]

    assert found() == []
    [packages] = installed.path("/usr/lib/qumail-relay/lib").glob("python3*/site-packages")
    [compiled] = packages.glob("relay/process/__pycache__/app.*.pyc")
    for file in (packages / "relay" / "outgoing.py", compiled, packages / "click" / "core.py"):
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        [problem] = found()
        assert f"{file.name}: is not as it was installed" in problem
        file.write_bytes(content)
    assert found() == []


def test_the_command_takes_no_module_from_elsewhere(installed: Machine) -> None:
    installed.path("/tmp/click.py").write_text("raise SystemExit('from elsewhere')\n")
    command = "cd /tmp && PYTHONPATH=/tmp PYTHONHOME=/nowhere qumail-relay --version"
    assert "version" in installed.run("sh", "-c", command)


def test_pages_and_completion_are_found_by_those_who_read_them(installed: Machine) -> None:
    if shutil.which("man"):
        for page in ("qumail-relay", "qumail-relay-keys"):
            text = installed.run("man", "--warnings", "--pager=cat", page)
            assert "SYNOPSIS" in text
            assert "warning" not in text
    completed = ". /usr/share/bash-completion/completions/qumail-relay && complete -p qumail-relay && "
    completed += (
        'COMP_WORDS=(qumail-relay key) COMP_CWORD=1 && _qumail_relay_completion qumail-relay && echo "${COMPREPLY[*]}"'
    )
    assert installed.run("bash", "-c", completed).splitlines()[-1] == "keys"
    if shutil.which("zsh"):
        installed.run("zsh", "-n", "/usr/share/zsh/vendor-completions/_qumail-relay")


def test_the_unit_is_the_one_of_the_tree_with_the_command_of_the_package(installed: Machine) -> None:
    unit = installed.path("/usr/lib/systemd/system/qumail-relay.service").read_text()
    theirs = (DEBIAN.parent / "qumail-relay.service").read_text().splitlines()
    for name in ("qumail-relay.socket", "qumail-relay-waiting.service"):
        assert installed.path(f"/usr/lib/systemd/system/{name}").read_text() == (DEBIAN.parent / name).read_text()
    other = [line for line in unit.splitlines() if line not in theirs]
    assert other == [
        "Documentation=man:qumail-relay(1)",
        "ExecStart=/usr/bin/qumail-relay serve --config /etc/qumail-relay/relay.toml",
        "ExecReload=/usr/bin/qumail-relay serve --check --config /etc/qumail-relay/relay.toml",
    ]


def test_from_install_over_upgrade_to_purge(machine: Machine, package: Path, predecessor: Path) -> None:
    before = machine.changed()
    install(machine, predecessor)
    configure(machine)
    secret, store = (machine.path(f"/var/lib/qumail-relay/{name}") for name in ("site.secret", "relay.db"))

    with started(machine) as old:
        assert greeting(machine) == "250\n"
        kept = secret.read_bytes()
        said = install(machine, package)
        assert old.wait() == 0, "the relay of before ends, and in good order"
    assert "serve" in said
    assert "setup" not in said
    assert machine.path(CONFIGURATION).read_text() == RELAY_TOML
    assert secret.read_bytes() == kept
    assert not machine.path("/usr/lib/qumail-relay/of_before.py").exists()

    with started(machine) as new:
        assert machine.run("/usr/lib/qumail-relay/bin/python", "-I", "-c", CARRIED) == "True\n"
        machine.run("dpkg", "--remove", "qumail-relay")
        assert new.wait() == 0
    assert machine.path(CONFIGURATION).read_text() == RELAY_TOML
    assert (secret.read_bytes(), store.exists()) == (kept, True)
    assert not machine.path("/usr/bin/qumail-relay").exists()
    assert not machine.path("/usr/lib/qumail-relay").exists()

    # What was kept is used again; and goes.
    install(machine, package)
    with started(machine):
        assert secret.read_bytes() == kept
    for made in (
        "systemd/system/qumail-relay.service.d/credentials.conf",
        "credstore.encrypted/qumail-relay.site.secret",
    ):
        machine.path(f"/etc/{made}").parent.mkdir(exist_ok=True)
        machine.path(f"/etc/{made}").touch()
    said = machine.run("dpkg", "--purge", "qumail-relay")
    for lost in ("/etc/qumail-relay", "/var/lib/qumail-relay", "site secret", "private keys", "quarantine"):
        assert lost in said
    assert {path for path in machine.changed() - before if not OF_DPKG.fullmatch(path)} == set()
    machine.run("dpkg", "--purge", "qumail-relay")
    assert "qumail" not in machine.path("/etc/passwd").read_text() + machine.path("/etc/group").read_text()


def of_the_document() -> list[list[str]]:
    """The blocks of commands of INSTALL.md, By package."""
    section = (DEBIAN.parent / "INSTALL.md").read_text().split("## By package\n")[1].split("\n## ")[0]
    return [block.splitlines() for block in re.findall("```sh\n(.*?)```", section, re.DOTALL)]


def test_the_commands_of_the_document_lead_from_an_installation_by_hand_to_the_package(
    machine: Machine, package: Path
) -> None:
    """One shell types all of it, which remembers where the command was."""
    by_hand = ("/etc/systemd/system/qumail-relay.service", "/usr/local/bin/qumail-relay", "/opt/qumail-relay/old")
    for name in by_hand:
        machine.path(name).parent.mkdir(parents=True, exist_ok=True)
        machine.path(name).write_text("#!/bin/sh\necho of before\n")
        machine.path(name).chmod(0o755)
    stand_in_for_systemd(machine)
    shutil.copy(package, machine.path(f"/root/{package.name}"))
    (build, *over, check), _ = of_the_document()
    assert build == "deploy/debian/build /root"
    install_it = "qumail-relay setup --yes --domain alice.example --kme none --postfix none"
    commands = "\n".join(["qumail-relay", *over]).replace("systemctl restart", f"{install_it}\nsystemctl restart")
    said = machine.run("bash", "-ec", commands)
    assert said.startswith("of before\n")
    assert "ok     to alice.example" in said
    assert [name for name in by_hand if machine.path(name).exists()] == []
    assert "outgoing.lmtp  127.0.0.1:15024: listens" in machine.run("bash", "-c", check, may_fail=True)


def test_purge_follows_a_link_and_empties_a_volume(installed: Machine) -> None:
    """Keys lie where the administrator has put them, and would stay there."""
    installed.run(
        "sh", "-c", "mkdir /srv/relay && rmdir /var/lib/qumail-relay && ln -s /srv/relay /var/lib/qumail-relay"
    )
    installed.path("/srv/relay/site.secret").touch()
    installed.run("mount", "-t", "tmpfs", "tmpfs", "/etc/qumail-relay")
    configured = installed.path("/etc/qumail-relay")
    installed.run("touch", "/etc/qumail-relay/relay.toml")
    said = installed.run("dpkg", "--purge", "qumail-relay")
    assert "/etc/qumail-relay itself stays: it is mounted" in said
    assert list(configured.iterdir()) == []
    assert list(installed.path("/srv/relay").iterdir()) == []
    assert not installed.path("/var/lib/qumail-relay").is_symlink()


@pytest.mark.promise("No local user gets Postfix's mail at a port of the relay")
def test_it_stays_while_a_postfix_still_hands_it_mail(installed: Machine, package: Path) -> None:
    """Once the relay is gone anybody on the host could listen at its port, and be handed the mail in clear."""
    installed.run("mkdir", "-p", "/etc/postfix")
    main_cf, master_cf = (installed.path(f"/etc/postfix/{name}.cf") for name in ("main", "master"))
    main_cf.write_text("content_filter = qumail:[127.0.0.1]:15024\n")
    configure(installed)
    with started(installed):
        said = installed.run("dpkg", "--remove", "qumail-relay", may_fail=True)
        assert "Postfix still hands mail to the relay" in said
        assert "qumail-relay setup --undo" in said
        assert greeting(installed) == "250\n", "it serves on"
    main_cf.write_text("qumail_destination_recipient_limit = 100\n")
    master_cf.write_text("qumail unix - - n - - lmtp\n    -o syslog_name=postfix/qumail\n")
    assert "Postfix" not in installed.run("dpkg", "--remove", "qumail-relay"), "the filters were taken out"
    assert not installed.path("/usr/bin/qumail-relay").exists()
    install(installed, package)
    master_cf.write_text("smtp inet n - n - - smtpd\n    -o content_filter=qumail:[127.0.0.1]:15034\n")
    assert "Postfix still hands" in installed.run("dpkg", "--remove", "qumail-relay", may_fail=True)
    assert installed.path("/usr/bin/qumail-relay").exists()
    master_cf.write_text("")
    main_cf.write_text("relayhost = [127.0.0.1]:15025\n")
    assert "Postfix still hands" in installed.run("dpkg", "--remove", "qumail-relay", may_fail=True)
    [anyway] = re.findall(r"anyway: (.*)", said)
    assert "Postfix still hands mail to the relay" in installed.run("sh", "-c", f"{anyway} --yes")
    assert not installed.path("/usr/bin/qumail-relay").exists()


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_a_maintainer_script_stops_at_what_it_does_not_know(script: str) -> None:
    text = (DEBIAN / script).read_text()
    assert re.search(r"^set -e$", text, re.MULTILINE)
    done = subprocess.run([DEBIAN / script, "nonsense"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{script} called with unknown argument: nonsense\n"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(["shellcheck", "-x", *(DEBIAN / name for name in SCRIPTS)], capture_output=True, text=True)
    assert done.stdout == ""


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_no_package_is_built_where_others_could_put_another_of_its_name(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    done = subprocess.run([DEBIAN / "build", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "others may write there; take a directory of your own" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
