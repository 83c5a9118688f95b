"""Fixtures of the policy tests: the sets of the table of decisions.
Standard: tests/data/decisions.toml.
"""

from __future__ import annotations

import pytest

from relay.policy.decide import PolicySet
from relay.policy.load import load_policies
from tests.testlib.policy_files import TABLE, write


@pytest.fixture(scope="module")
def without_default(tmp_path_factory: pytest.TempPathFactory) -> PolicySet:
    """The files of the table."""
    return load_policies(write(tmp_path_factory.mktemp("without"), TABLE["files"]), TABLE["peers"])


@pytest.fixture(scope="module")
def with_default(tmp_path_factory: pytest.TempPathFactory) -> PolicySet:
    """The files of the table and a default.toml."""
    files = TABLE["files"] | TABLE["with_a_default_file"]
    return load_policies(write(tmp_path_factory.mktemp("with"), files), TABLE["peers"])
