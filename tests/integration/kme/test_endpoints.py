"""How the development KMEs are found: by the file in their state directory, else at the usual ports.
Standard: XDG Base Directory Specification.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.keys import get_optimized_km_clients
from relay.keys.development import DEFAULT_PORTS, ENDPOINTS_FILE, default_state_dir, endpoints
from relay.kme import DevelopmentKMEs
from relay.kme.servers import announced
from tests.integration.kme.clients import repr_start, running


async def test_running_servers_say_where_they_are_and_stopped_ones_no_longer_do(tmp_path: Path) -> None:
    async with running(tmp_path) as site:
        state_dir = site.kmes.state_dir
        assert endpoints(state_dir) == site.kmes.urls
        written = json.loads((state_dir / ENDPOINTS_FILE).read_bytes())
        assert (written["KM1"], written["KM2"]) == site.kmes.urls
    assert not (state_dir / ENDPOINTS_FILE).exists()


async def test_servers_do_not_remove_the_addresses_of_others(tmp_path: Path) -> None:
    first = DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0))
    await first.start()
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)) as second:
        await first.stop()
        assert endpoints(tmp_path / "kme") == second.urls


async def test_a_missing_addresses_file_does_not_keep_the_servers_from_stopping(tmp_path: Path) -> None:
    async with running(tmp_path) as site:
        (site.kmes.state_dir / ENDPOINTS_FILE).unlink()


def test_without_running_servers_the_addresses_are_the_usual_ones(tmp_path: Path) -> None:
    assert endpoints(tmp_path) == ("https://localhost:13000", "https://localhost:14000")
    assert DEFAULT_PORTS == (13000, 14000)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "[" * 100_000,
        '{"KM1": "https://localhost:1"}',
        '{"KM1": 1, "KM2": 2}',
        '{"KM1": "http://localhost:1", "KM2": "https://localhost:2"}',
        '{"KM1": "https://", "KM2": "https://localhost:2"}',
    ],
    ids=repr_start,
)
def test_an_addresses_file_that_cannot_be_used_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / ENDPOINTS_FILE).write_text(content)
    with pytest.raises(ConfigError, match="remove it"):
        endpoints(tmp_path)


def test_the_state_directory_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    usual = Path("/home/alice/.local/state/qumail-relay/kme")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert default_state_dir() == usual
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_state_dir() == usual
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/state")
    assert default_state_dir() == Path("/var/lib/state/qumail-relay/kme")
    assert DevelopmentKMEs().state_dir == default_state_dir()


async def test_servers_elsewhere_are_used_by_those_who_name_their_directory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.keys.development._pairs", {})
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    async with running(tmp_path) as site:
        state = site.kmes.state_dir
        assert f"QUMAIL_KME_STATE={state}" in announced(site.kmes)
        with pytest.raises(ConfigError, match=r"start `qumail-relay kme` and wait.*QUMAIL_KME_STATE"):
            get_optimized_km_clients()
        by_name = get_optimized_km_clients(state)
        monkeypatch.setattr("relay.keys.development._pairs", {})
        monkeypatch.setenv("QUMAIL_KME_STATE", str(state))
        by_environment = get_optimized_km_clients()
        assert {pair.km1.url for pair in (by_name, by_environment)} == {site.kmes.urls[0]}
    assert not (tmp_path / "home").exists()
