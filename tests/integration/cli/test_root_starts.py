"""What root types to start a relay that runs as another user: refused before anything is made, with the right command.
Standard: deploy/RUNNING.md, Rights; a file of root's in the state keeps the relay's user from starting.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from relay.cli import check_listeners, units
from relay.config import TCPAddress, load_config
from relay.errors import ConfigError, StoreUnavailable
from relay.files.rights import as_owner_of, given_by_root
from relay.store.sqlite import _locked, prepare_sqlite_file
from tests.testlib.as_root import attempts
from tests.testlib.roots_site import (
    Place,
    nobody,
    place as place,  # a fixture
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")


def test_root_starts_no_relay_of_another_user_and_leaves_nothing_behind(place: Place) -> None:
    before = sorted(place.state.rglob("*"))
    [ended] = attempts("serve", *place.config).ended
    assert ended.status == 1
    assert f"runuser --pty -u nobody -- qumail-relay serve --config {place.site}/relay.toml" in ended.said
    assert sorted(place.state.rglob("*")) == before


def test_check_names_what_the_relays_user_cannot_write_and_whom_to_give_it_to(place: Place) -> None:
    for name in ("held.json", "relay.db"):
        (place.state / name).touch(mode=0o600)
    (place.state / "policies.kept").mkdir(mode=0o700)
    (place.state / "tls.pem").touch(mode=0o644)
    settings = place.site / "relay.toml"
    settings.write_text(settings.read_text().replace('certificate = "kme/ca.pem"', 'certificate = "state/tls.pem"'))
    [ended] = attempts("check", *place.config, "--no-next-hops").ended
    said = " ".join(ended.said.split())
    for name in ("held.json", "relay.db", "policies.kept"):
        path = place.state / name
        assert f"{path}: belongs to user root, and nobody, as whom the relay runs, cannot write it" in said
        assert given_by_root(path, "nobody") in said
    assert f"{place.state}/tls.pem: belongs" not in said, "which the relay only reads"


def test_a_store_of_another_user_is_said_to_be_theirs(place: Place) -> None:
    path = place.state / "relay.db"
    path.touch(mode=0o600)
    said = re.escape(f": it belongs to user root: {given_by_root(path, 'nobody')}") + "$"
    with as_owner_of(place.state), pytest.raises(StoreUnavailable, match=said):
        prepare_sqlite_file(path, 1)
    with as_owner_of(place.state), pytest.raises(ConfigError, match=f"Permission denied{said}"):
        _locked(path)


@pytest.mark.parametrize("booted", [True, False])
def test_what_starts_the_relay_of_another_user_is_what_root_may_type(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, booted: bool
) -> None:
    """Without its unit: the one of deploy/INSTALL.md for the file that this reads, else by hand as its user."""
    config_file = place.site / "relay.toml"
    monkeypatch.setattr(units, "DIRECTORIES", (tmp_path / "none",))
    monkeypatch.setattr(units, "BOOTED", tmp_path if booted else tmp_path / "none")
    by_hand = f"runuser --pty -u nobody -- qumail-relay serve --config {config_file}"
    assert units.how_to("start", config_file, "nobody") == by_hand
    monkeypatch.setattr(units, "DEFAULT_CONFIG", config_file)
    command = units.how_to("start", config_file, "nobody")
    assert command.endswith("systemctl daemon-reload && systemctl enable --now qumail-relay" if booted else by_hand)


def test_check_by_root_says_to_start_it_as_the_relays_user(place: Place) -> None:
    [ended] = attempts("check", *place.config, "--no-next-hops").ended
    assert ended.user == nobody().uid
    assert (
        f"start the relay: runuser --pty -u nobody -- qumail-relay serve --config {place.site}/relay.toml" in ended.said
    )


def test_a_listener_of_the_relays_user_is_no_strangers_where_the_secret_is_not_there(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(place.site / "relay.toml")
    config.store.secret.unlink(missing_ok=True)
    for user, found in ((place.state.stat().st_uid, []), (4242, ["who is not the relay's user"])):
        monkeypatch.setattr(check_listeners, "_users", lambda _, user=user: {user})
        said = list(check_listeners._problems(config, TCPAddress("127.0.0.1", 1), listens=True, serves=None))
        assert [part in each for part, each in zip(found, said, strict=True)] == [True] * len(found)
