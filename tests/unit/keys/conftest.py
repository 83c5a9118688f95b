"""Fixtures of the key tests: certificates, simulated time, and KMEs that misbehave.
Standard: each test has its own; the certificate authority alone is made once, since it is slow to make.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One authority for all tests."""
    directory: Path = tmp_path_factory.mktemp("certificates")
    return Certificates(directory)


@pytest.fixture
def time() -> FakeTime:
    """Simulated time."""
    return FakeTime()


@pytest.fixture
async def kme(certificates: Certificates) -> AsyncIterator[FakeKME]:
    """One KME that behaves until it is told otherwise."""
    async with FakeKME(certificates) as server:
        yield server


@pytest.fixture
async def two_kmes(certificates: Certificates) -> AsyncIterator[tuple[FakeKME, FakeKME]]:
    """Two KMEs of the same pair of sites: both know the same keys."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(FakeKME(certificates))
        second = await stack.enter_async_context(FakeKME(certificates, first.link))
        yield first, second
