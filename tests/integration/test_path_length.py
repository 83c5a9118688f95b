"""How far somebody has to read to know what happens to one mail: the functions and files that it runs through.
Standard: relay/README.md, "A message out, in ten steps".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import pytest

import relay
from relay.audit import writing
from relay.kme import DevelopmentKMEs
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import submit

HERE = Path(relay.__file__).parent
MAILS, MAX_MAILS = 10, 100
MAX_FUNCTIONS, MAX_FILES = 300, 45


@contextmanager
def called() -> Iterator[set[CodeType]]:
    """What this thread runs meanwhile."""
    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        # No more than this: a mail that took a second would run beside all that the relay does every second.
        if event == "call":
            codes.add(frame.f_code)

    sys.setprofile(note)
    try:
        yield codes
    finally:
        sys.setprofile(None)


def functions_of(codes: set[CodeType]) -> set[tuple[Path, str]]:
    """Those of the relay, without lambdas and comprehensions."""
    named = {(Path(each.co_filename), each.co_qualname) for each in codes if not each.co_name.startswith("<")}
    beside = {HERE / "kme", HERE / "status"}  # the development KMEs are in this process too
    return {(file, name) for file, name in named if HERE in file.parents and beside.isdisjoint(file.parents)}


@pytest.mark.in_process
async def test_a_sealed_mail_runs_through_few_functions_in_few_files(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where a mail takes as long as this, the audit record is written beside every one.
    monkeypatch.setattr(writing, "FLUSH_S", 3600.0)
    site = make_site(
        tmp_path, "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies={"default.toml": 'levels = ["aes"]\n'},
    )  # fmt: skip
    path: set[tuple[Path, str]] = set()
    async with serving(site) as addresses:
        for number in range(MAX_MAILS):
            with called() as codes:
                reply = await submit(addresses["outgoing"], mails.plain(), recipients=["bob@bob.example"])
            assert reply.code == 250, reply
            # What all of them run through is a mail's; what the relay does beside mail comes once in a while, and on
            # a busy machine beside many of them.
            functions = functions_of(codes)
            path = functions if number == 0 else path & functions
            files = {file for file, _ in path}
            if number >= MAILS and len(path) <= MAX_FUNCTIONS and len(files) <= MAX_FILES:
                break
    assert {HERE / "outgoing.py", HERE / "journey/sealing.py", HERE / "forward/transaction.py"} <= files
    assert len(path) <= MAX_FUNCTIONS, sorted(name for _, name in path)
    assert len(files) <= MAX_FILES, sorted(map(str, files))
