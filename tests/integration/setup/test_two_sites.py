"""Two sites on one bare machine, by what deploy/TRYING.md says to type: the first sealed mail at each level.
Standard: the commands and the table of answers as they stand there; real Postfix, development KMEs; answers are counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest

from relay.config import TCPAddress
from relay.formats import mime
from tests.testlib import mails, postfix
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import Postfix, requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, relay_process
from tests.testlib.submit import SMTPReply, submit
from tests.testlib.terminal import Terminal

README = (Path(__file__).parents[3] / "deploy" / "TRYING.md").read_text()
SECTION = README.split("## Two sites on one machine\n")[1].split("\n## ")[0]
KME, SECOND_POSTFIX, SITES, POLICIES, CANARIES, SERVE, MAIL = re.findall(
    r"^```sh\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE
)
ROWS = re.findall(r"^\| `([^`]+)` \| (?:`([^`]*)`)? ?\| (?:`([^`]*)`)? ?\|$", SECTION, re.MULTILINE)
QUESTIONS = [question for question, _, _ in ROWS]
THIS_MACHINES = ("--port-base", "15120", "--postfix", "/etc/postfix-bob")
MOST_ANSWERS = 10


@dataclass(frozen=True)
class Machine:
    """A directory where both sites are, their Postfix, and how commands are run there."""

    directory: Path
    postfix: Mapping[str, Postfix]
    bases: Mapping[str, int]

    @property
    def environment(self) -> dict[str, str]:
        root = str(Path(__file__).parents[3])
        return {
            "XDG_STATE_HOME": str(self.directory / "xdg"),
            "PYTHONPATH": root,
            "QUMAIL_RELAY_USER": "root",
            "COLUMNS": "200",
        }

    def words(self, command: str) -> list[str]:
        """A command of the document, with this test's ports and Postfix."""
        program, *words = shlex.split(command)
        assert program == "qumail-relay"
        for name, base in self.bases.items():
            if words[0] == "setup" and f"{name}/relay.toml" in words:
                words = [word for word in words if word not in THIS_MACHINES]
                words += ["--port-base", str(base), "--postfix", str(self.postfix[name].config)]
        return [sys.executable, "-m", "relay", *words]

    def typed(self, command: str, name: str) -> Terminal:
        """Runs one at a terminal, and types what the table says for this site."""
        column = {"alice": 1, "bob": 2}[name]
        answers = {row[0]: row[column] for row in ROWS}
        terminal = Terminal(self.words(command), directory=self.directory, environment=self.environment)
        while (question := terminal.asked(QUESTIONS)) is not None:
            terminal.answer(answers[question])
        assert terminal.end() == 0, terminal.shown
        return terminal


USERS = ("ann", "ben", "otp", "aes", "pqc", "rsa")


def blocks_of_ports(number: int) -> list[int]:
    """Bases of which the ports 4 to 18 above are free."""
    for _ in range(10):  # those that are handed out last may be few, and in pieces
        free = {address.port for address in free_addresses(40 * number)}
        found: list[int] = []
        for port in sorted(free):
            if all(port + step in free for step in range(4, 19)) and all(abs(port - other) > 20 for other in found):
                found.append(port)
        if len(found) >= number:
            return found[:number]
    raise AssertionError("no ports are free")


@asynccontextmanager
async def kme(machine: Machine) -> AsyncIterator[None]:
    """The development KMEs, as the document says, on free ports."""
    process = await asyncio.create_subprocess_exec(
        *machine.words(KME.strip()), "--port", "0", "--port", "0",
        cwd=machine.directory, env={**os.environ, **machine.environment}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while b"NOT quantum" not in await process.stdout.readline():
                pass
        yield
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def bare_machine(directory: Path) -> AsyncIterator[tuple[Machine, dict[str, Sink]]]:
    """Two Postfix that know each other and nothing of a relay, and what their users get."""
    smtp = dict(zip(("alice", "bob"), free_addresses(2), strict=True))
    async with AsyncExitStack() as stack:
        boxes = {name: await stack.enter_async_context(Sink()) for name in smtp}
        servers: dict[str, Postfix] = {}
        for name, peer in (("alice", "bob"), ("bob", "alice")):
            here = f"mailboxes:[127.0.0.1]:{boxes[name].address.port}"
            there = f"smtp:[127.0.0.1]:{smtp[peer].port}"
            settings = {
                "myhostname": f"mail.{name}.example",
                "relay_domains": f"{name}.example",
                # The canary address is known once setup has listed it, which canaries below need.
                "relay_recipient_maps": f"inline:{{{', '.join(f'{user}@{name}.example=known' for user in USERS)}}}",
                "default_transport": here,
                "transport_maps": f"inline:{{ {name}.example={here}, {peer}.example={there} }}",
            }
            servers[name] = await stack.enter_async_context(
                postfix.running(smtp=smtp[name], fragments=(), ports={}, settings=settings)
            )
        bases = dict(zip(smtp, blocks_of_ports(2), strict=True))
        yield Machine(directory, servers, bases), boxes


@pytest.mark.promise("Forged mail in a peer's name is marked from the day that the peer is taken in")
@requires_postfix
@pytest.mark.timeout(600)  # eight processes that make RSA keys and load everything, one after the other
async def test_what_the_document_says_makes_two_sites_that_seal_for_each_other_and_mark_what_is_forged(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        machine, boxes = await stack.enter_async_context(bare_machine(tmp_path))
        await stack.enter_async_context(kme(machine))
        answers = {"alice": 0, "bob": 0}
        for command in SITES.splitlines():
            name = "alice" if "alice/relay.toml" in command else "bob"
            terminal = await asyncio.to_thread(machine.typed, command, name)
            answers[name] += terminal.answers
            if command.startswith("qumail-relay setup --config bob"):
                assert "to alice.example (peer alice): sealed: aes, 256 bits of quantum key" in terminal.shown
        assert max(answers.values()) <= MOST_ANSWERS, answers
        await postfix.run("sh", "-ec", POLICIES + CANARIES, directory=tmp_path)
        relays = {
            name: await stack.enter_async_context(relay_process(Site(tmp_path / name)))
            for name in re.findall(r"--config (\w+)/relay.toml", SERVE)
        }
        for level in ("otp", "aes", "pqc", "rsa"):
            message = mails.plain(f"at level {level}", "The vault opens at 06:30.\r\n")
            reply = await machine.postfix["alice"].submit(message, recipients=[f"{level}@bob.example"])
            assert reply.code == 250
            [*_, got] = await boxes["bob"].messages(len(boxes["bob"].got) + 1)
            assert got.recipients == (f"{level}@bob.example",)
            assert b"The vault opens at 06:30." in got.message
            sealed = _event(relays["alice"].log_file, "sealed_and_sent", level)
            opened = _event(relays["bob"].log_file, "opened_and_sent", level)
            assert sealed["protection"] == opened["protection"]
            assert sealed["protection"].startswith(level)
            assert (sealed["quantum_bits"] > 0) is (level in ("otp", "aes"))
            assert sealed["key_IDs"] == opened["key_IDs"]
            assert b"X-QuMail-Protection: none" not in got.message
        reply = await machine.postfix["bob"].submit(
            mails.plain("back").replace(b"ann@alice.example", b"ben@bob.example"),
            sender="ben@bob.example", recipients=["ann@alice.example"],
        )  # fmt: skip
        assert reply.code == 250
        [got] = await boxes["alice"].messages(1)
        assert got.recipients == ("ann@alice.example",)
        assert _event(relays["alice"].log_file, "opened_and_sent", "aes")["key_IDs"]
        for relay in relays.values():
            async with asyncio.timeout(60):
                while "canary_returned" not in relay.log:
                    await asyncio.sleep(0.1)
        for name, peer in (("bob", "alice"), ("alice", "bob")):  # one took the other in by setup, the other by accept
            sender, recipient = f"boss@{peer}.example", f"ben@{name}.example"
            forged = mails.plain("forged", "Pay it today.\r\n").replace(b"ann@alice.example", sender.encode())
            reply = await machine.postfix[name].submit(forged, sender=sender, recipients=[recipient])
            assert reply.code == 250
            [*_, got] = await boxes[name].messages(len(boxes[name].got) + 1)
            assert got.recipients == (recipient,)
            assert b"\r\nX-QuMail-Protection: none; required=sealed\r\n" in b"\r\n" + mails.unproven(got.message)
            [second] = free_addresses(1)  # a service that somebody adds later, and gives no filter
            inet = f"127.0.0.1:{second.port}"
            added = f"{inet} inet n - n - - smtpd"
            await machine.postfix[name].command("postconf", "-M", f"{inet}/inet={added}")
            master = machine.postfix[name].directory / "queue" / "pid" / "master.pid"
            os.kill(int(master.read_text()), signal.SIGHUP)
            reply = await submit_once_open(second, forged, sender=sender, recipients=[recipient])
            assert reply.code == 250
            [*_, got] = await boxes[name].messages(len(boxes[name].got) + 1)
            assert b"\r\nX-QuMail-Protection: none; required=sealed\r\n" in b"\r\n" + mails.unproven(got.message)
            assert relays[name].log.count("came_unsealed_in_a_peers_name") == 2
            ordinary = mails.plain("ordinary").replace(b"ann@alice.example", b"cat@else.example")
            reply = await machine.postfix[name].submit(ordinary, sender="cat@else.example", recipients=[recipient])
            assert reply.code == 250
            [*_, got] = await boxes[name].messages(len(boxes[name].got) + 1)
            assert b"X-QuMail-Protection" not in got.message
        for relay in relays.values():
            async with asyncio.timeout(60):
                while "comes_unsealed_at_peer" not in relay.log:
                    await asyncio.sleep(0.1)


async def submit_once_open(address: TCPAddress, message: bytes, **envelope: Any) -> SMTPReply:
    """The reply of a service that Postfix is about to open."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await submit(address, message, **envelope)
            except aiosmtplib.SMTPConnectError:
                await asyncio.sleep(0.05)


APART = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
ALONE = """
mount --make-rprivate /
for place in /etc /var/lib /var/spool /var/mail; do mkdir -p "$0$place"; done
cp -a /etc/. "$0/etc/"
cp -a /var/lib/postfix "$0/var/lib/"
cp -a /var/spool/postfix "$0/var/spool/"
for place in /etc /var/lib /var/spool /var/mail; do mount --bind "$0$place" "$place"; done
ip link set lo up
postconf() { command postconf "$@"; touch -d '1 minute ago' /etc/postfix*/*.cf; }
"""
"""The directories that Postfix writes to become copies, the network is one of its own, and nothing waits for old files."""


@requires_postfix
async def test_the_two_postfix_of_the_document_take_each_others_mail_and_canaries(tmp_path: Path) -> None:
    if await _status(*APART, "ip", "link", "set", "lo", "up"):
        pytest.skip("the kernel allows no namespaces of mounts and networks")
    commands = SECOND_POSTFIX.replace("postfix stop\n", "")  # here none runs before
    *sending, shown = MAIL.splitlines()
    canaries = [
        re.sub(r"\S+$", f"qumail-canary@{peer}.example", line)
        for line, peer in zip(sending, ("bob", "alice"), strict=True)
    ]
    came = "timeout 30 sh -c 'until [ \"$(ls /var/mail/*/all/new/* | wc -l)\" = 4 ]; do sleep 0.1; done'"
    said = await postfix.run(
        *APART, "sh", "-ec", "\n".join((ALONE + commands, *sending, *canaries, came, shown)), str(tmp_path)
    )
    for name, line in (("bob", "The vault opens at 06:30."), ("alice", "The vault is open.")):
        assert said.count(line) == 2
        assert f"Delivered-To: qumail-canary@{name}.example" in said


async def _status(*words: str) -> int:
    process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait()


def _event(log: Path, name: str, level: str) -> dict[str, Any]:
    """The one about this test's mail; those of canaries have other message IDs."""
    ours = mime.message_id_hash(mails.plain())
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    of_mail = [each for each in events if each["event"] == name and each["message_id"] == ours]
    [found] = [each for each in of_mail if str(each["protection"]).startswith(level)]
    return dict(found)
