"""`check` finds a relay that still runs what is no longer installed, and says what to type.
Standard: a process keeps the files that it has opened; the relay writes down what it was started from.
"""

from __future__ import annotations

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
