"""`setup --hold-ports` while the relay, which fails for want of the ports, is started again and again.
Standard: systemd.socket(5): a socket unit cannot start while its service is active.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.cli import setup_ports
from relay.cli.units import Unit
from relay.errors import ConfigError

UNIT = Unit("qumail-relay", Path("relay.toml"), "qumail-relay", Path("relay.toml"))


@pytest.mark.parametrize("fails", [0, 2, setup_ports.ATTEMPTS])
def test_a_socket_unit_that_cannot_start_at_this_moment_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    asked: list[tuple[str, ...]] = []

    def systemctl(*words: str) -> str:
        asked.append(words)
        if len(asked) <= fails:
            raise ConfigError("Job failed")
        return ""

    monkeypatch.setattr(setup_ports, "systemctl", systemctl)
    monkeypatch.setattr(setup_ports, "PAUSE_S", 0)
    if fails == setup_ports.ATTEMPTS:
        with pytest.raises(ConfigError, match="Job failed"):
            setup_ports._restart(UNIT)
    else:
        setup_ports._restart(UNIT)
    assert asked == [("restart", "qumail-relay.socket")] * min(fails + 1, setup_ports.ATTEMPTS)
