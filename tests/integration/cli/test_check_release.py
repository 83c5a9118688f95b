"""`check` finds a relay that still runs what is no longer installed, and says what to type.
Standard: a process keeps the files that it has opened; the relay writes down what it was started from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import relay
from relay.kme import DevelopmentKMEs
from relay.process import app
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site


@pytest.mark.in_process
@pytest.mark.parametrize("becomes", ["gone", "newer", "same"])
async def test_a_relay_that_runs_what_is_no_longer_installed_is_told(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    package = tmp_path / "opt" / "relay"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    with monkeypatch.context() as started:
        started.setattr(relay, "__file__", str(package / "__init__.py"))
        running = app.running(site.config)
        await running.__aenter__()
    try:
        if becomes == "gone":
            shutil.rmtree(package)
        elif becomes == "newer":
            (package / "new.py").write_text("")
            (package / "new.py").replace(package / "__init__.py")
        _, _, said = await run("check", "--config", site.config_file, "--no-next-hops")
    finally:
        await running.__aexit__(None, None, None)
    found = [line for line in said.decode().splitlines() if " release " in line]
    if becomes == "same":
        assert found[0].startswith("ok"), said.decode()
    else:
        assert "which is gone" in found[0] or "installed anew" in found[0]
        assert f"qumail-relay serve --config {site.config_file}" in found[0]


@pytest.mark.in_process
async def test_a_package_that_dpkg_has_left_half_installed_is_told(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    admin = tmp_path / "dpkg"
    (admin / "updates").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dpkg-query").write_text(f'#!/bin/sh\nexec /usr/bin/dpkg-query --admindir={admin} "$@"\n')
    (tmp_path / "bin/dpkg-query").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    async with app.running(site.config):

        async def found(state: str, before: str = "") -> list[str]:
            (admin / "status").write_text(
                f"Package: qumail-relay\nStatus: install {state}\nArchitecture: all\nVersion: 1\n"
                "Maintainer: us\nDescription: relay\n\n"
            )
            _, _, said = await run("check", "--config", site.config_file, "--no-next-hops", "--json", before=before)
            return [each for row in json.loads(said) if row["what"] == "release" for each in row["problems"]]

        assert await found("ok half-configured") == []  # this relay is not the package's
        ours = f"from pathlib import Path; from relay.cli import check; check.PACKAGE = Path({str(Path(relay.__file__).parent)!r})"
        remedy = "dpkg --configure -a, or install the package again"
        for state in ("ok half-configured", "ok unpacked", "reinstreq half-installed"):
            assert await found(state, ours) == [f"the Debian package is {state}, not ok installed: {remedy}"]
        assert await found("ok installed", ours) == []
