"""A watcher that is killed between any two of its steps, from the KME's answer to the sealed message's last place.
Standard: SIGKILL (steps at the IMAP server: test_kill.py); each original is there once and unchanged, and what a KME gave away is in the store, and there alone.
"""

from __future__ import annotations

import asyncio
import fcntl
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from tests.integration.entry.imap.conftest import Alice, bob_at, opened, original, visit
from tests.integration.test_key_receiver import runs, when_given
from tests.testlib import relay_command
from tests.testlib.imap_double import IMAPDouble
from tests.testlib.relay_command import RelayCommand
from tests.testlib.sites import Site
from tests.testlib.wire import Wire

UNTIL_IN_THE_STORE = [
    ("relay.store.spool", "Spool.append", "after"),
    ("relay.store.received", "ReceivedKeys.put", "before"),
    ("relay.store.received", "ReceivedKeys.put", "after"),
    ("relay.store.received", "ReceivedKeys.have_rows", "before"),
    ("relay.store.received", "ReceivedKeys.have_rows", "after"),
    ("relay.store.record_files", "RecordFile.remove", "before"),
    ("relay.store.record_files", "RecordFile.remove", "after"),
]
UNTIL_SETTLED = [
    ("relay.store.delivery_records", "DeliveryRecords.admit", "before"),
    ("relay.store.delivery_records", "DeliveryRecords.admit", "after"),
    ("relay.store.delivery_records", "DeliveryRecords.settle_opened", "after"),
]
KILLED = """
import importlib, inspect, os, signal

relay = os.getpid()

def die():
    os.kill(relay, signal.SIGKILL)

owner = importlib.import_module("{module}")
*above, name = "{step}".split(".")
for each in above:
    owner = getattr(owner, each)
real = getattr(owner, name)

async def later(*given, **named):
    if "{when}" == "before":
        die()
    found = await real(*given, **named)
    die()
    return found

def now(*given, **named):
    if "{when}" == "before":
        die()
    found = real(*given, **named)
    die()
    return found

setattr(owner, name, later if inspect.iscoroutinefunction(real) else now)
"""
"""The key receiver runs it as well: whichever of the two processes comes to the step, it is the relay that is killed."""
COMMANDS = {"once": ("imap", "once"), "watch": ("serve",)}


@pytest.fixture
async def to_kme(kmes: DevelopmentKMEs) -> Wire:
    """Between Bob's relay and KME."""
    return Wire(TCPAddress("127.0.0.1", urlsplit(kmes.urls[1]).port or 443))


@pytest.fixture
def bob(tmp_path: Path, kmes: DevelopmentKMEs, provider: IMAPDouble) -> Site:
    return bob_at(provider, tmp_path, kmes)


async def start(bob: Site, how: str, before: str = "") -> RelayCommand:
    return await relay_command.start(*COMMANDS[how], "--config", bob.config_file, before=before)


def _locked(path: Path) -> bool:
    """Whether somebody still writes to this file; one that is gone by now was taken over."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


async def in_the_end(bob: Site, provider: IMAPDouble, subjects: list[str]) -> None:
    """The next watcher finds all that is still to do, once the second process of the killed one has ended."""
    async with asyncio.timeout(30):
        while any(map(_locked, (bob.directory / "keys.spool").glob("*"))):
            await asyncio.sleep(0.02)
    [visited] = await visit(bob)
    assert (visited.failure, visited.unopened, visited.lost) == ("", 0, 0)
    assert opened(provider.messages()) == sorted(map(original, subjects))
    assert len(provider.messages()) == len(provider.messages("Sealed")) == len(subjects)
    assert list((bob.directory / "keys.spool").iterdir()) == [], "and no key lies about"


@pytest.mark.promise("A killed relay loses no received key")
@pytest.mark.parametrize(
    ("how", "steps"), [("once", UNTIL_IN_THE_STORE + UNTIL_SETTLED), ("watch", UNTIL_IN_THE_STORE)]
)
async def test_killed_between_any_two_steps_a_watcher_loses_and_doubles_nothing(
    how: str, steps: list[tuple[str, str, str]], alice: Alice, bob: Site, provider: IMAPDouble
) -> None:
    subjects: list[str] = []
    for number, (module, step, when) in enumerate(steps):
        subjects.append(f"{number:02} {when} {step}")
        provider.put(await alice.seal(original(subjects[-1])))
        watcher = await start(bob, how, before=KILLED.format(module=module, step=step, when=when))
        async with asyncio.timeout(20):
            assert await watcher.wait() == -9, f"{subjects[-1]} was reached"
        await in_the_end(bob, provider, subjects)


@pytest.mark.promise("A killed relay loses no received key")
@pytest.mark.parametrize("how", COMMANDS)
async def test_killed_while_its_keys_are_on_the_way_a_watcher_opens_the_message_later(
    how: str, alice: Alice, bob: Site, provider: IMAPDouble, kmes: DevelopmentKMEs, to_kme: Wire
) -> None:
    provider.put(await alice.seal(original("one")))
    async with to_kme:
        text = bob.config_file.read_text()
        bob.config_file.write_text(text.replace(kmes.urls[1], f"https://{to_kme.address}"))
        given = when_given(kmes, to_kme.hold_answers)
        watcher = await start(bob, how)
        receivers = Path(f"/proc/{watcher.pid}/task/{watcher.pid}/children")
        await given.get()
        children = [int(each) for each in receivers.read_text().split()]
        watcher.kill()
        await watcher.wait()
        to_kme.let_answers_go()
        async with asyncio.timeout(10):
            while any(map(runs, children)):
                await asyncio.sleep(0.02)
        await in_the_end(bob, provider, ["one"])
