"""Two sites whose status can be asked.
What /metrics says of them is never a moment old.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.status import exposition
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.status_numbers import with_status


@dataclass
class Two:
    """Two sites whose status can be asked."""

    alice: dict[str, TCPAddress]
    bob: dict[str, TCPAddress]


@pytest.fixture
async def two(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    monkeypatch.setattr(exposition, "SHARE", math.inf)  # what is told is never a moment old
    first, second = kmes.urls
    bob = with_status(make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=second, incoming=sink.address))
    async with AsyncExitStack() as stack:
        of_bob = await stack.enter_async_context(app.running(bob.config))
        alice = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=first, outgoing=of_bob["incoming"],
            policies={
                "default.toml": 'levels = ["plaintext"]\n',
                "bob.example.toml": 'levels = ["aes"]\n',
                "refused.example.toml": 'peer = "bob"\nlevels = ["pqc+aes", "pqc"]\notherwise = "refuse"\n',
            },
        )  # fmt: skip
        of_alice = await stack.enter_async_context(app.running(with_status(alice).config))
        yield Two(of_alice, of_bob)
