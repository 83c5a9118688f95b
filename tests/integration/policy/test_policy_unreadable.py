"""A relay that may not look at some of its policies: the set before stays in force, and no mail leaves in clear for it.
Standard: only ENOENT and ENOTDIR mean that a file is gone; the relay runs as a user without rights, and root edits.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from tests.integration.test_reloading import until
from tests.testlib import mails, relay_command
from tests.testlib.nobody import AS_NOBODY, by_root, give_to_nobody
from tests.testlib.sink import Sink
from tests.testlib.sites import DidNotStart, RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import submit

pytestmark = by_root

CLEAR = 'levels = ["plaintext"]\nreason = "public"\n'
SEALED = 'peer = "bob"\nlevels = ["aes"]\n'


@pytest.fixture
async def site(kmes: DevelopmentKMEs, sink: Sink) -> AsyncIterator[Site]:
    """The policies are root's, and all may read them; state and keys are nobody's. Links lead to some of the files."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        state = shutil.copytree(kmes.state_dir, top / "kme")
        made = make_site(
            top / "alice", "alice", state=state, kme_url=kmes.urls[0], outgoing=sink.address, policies={},
        )  # fmt: skip
        give_to_nobody(top)
        for file in ("sets/1/d1.example/x.toml", "elsewhere/d2/x.toml", "elsewhere/deep/d3.toml"):
            (top / file).parent.mkdir(parents=True, exist_ok=True)
            (top / file).write_text(SEALED)
        (top / "sets/1/default.toml").write_text(CLEAR)
        (top / "sets/1/d2.example").symlink_to(top / "elsewhere/d2")
        (top / "sets/1/d3.example.toml").symlink_to("../../elsewhere/deep/d3.toml")
        (top / "alice/policies").symlink_to("../sets/1")
        yield made


async def is_sealed(relay: RelayProcess, sink: Sink, recipient: str) -> bool:
    """Whether a mail to this recipient has left, and sealed."""
    assert (await submit(relay.addresses["outgoing"], mails.plain(), recipients=[recipient])).code == 250
    return b"application/pkcs7-mime" in sink.got[-1].message


CLOSED = {
    "a domain's directory without search permission": ("sets/1/d1.example", 0o644, "x@d1.example"),
    "without any": ("sets/1/d1.example", 0, "x@d1.example"),
    "without read permission": ("sets/1/d1.example", 0o711, "x@d1.example"),
    "the top": ("sets/1", 0o644, "x@d1.example"),
    "a directory above": ("sets", 0o600, "x@d1.example"),
    "what a link to a directory leads through": ("elsewhere", 0o600, "x@d2.example"),
    "what a link to a directory leads to": ("elsewhere/d2", 0o644, "x@d2.example"),
    "what a link to a file leads through": ("elsewhere/deep", 0o600, "x@d3.example"),
    "a file": ("sets/1/d1.example/x.toml", 0o600, "x@d1.example"),
}
"""What is closed, with which mode, and whose mail it concerns."""


def denied(site: Site) -> str:
    """Why, and what to do: the link is nobody's own, so what it leads to is not for root to give away."""
    link = site.directory / "policies"
    remedy = f"a link leads there, {link}; change nothing there, and look at the link: ls -ld {link}"
    return "(mode {mode:04o}, owner root:root): " + remedy


async def test_what_cannot_be_looked_at_leaves_the_set_before_in_force_and_is_said_with_the_remedy(
    site: Site, sink: Sink
) -> None:
    said = "{}: cannot be {} by nobody: Permission denied " + denied(site)
    async with relay_process(site, before=AS_NOBODY) as relay:
        for number, (what, (name, mode, recipient)) in enumerate(CLOSED.items(), 1):
            path = site.directory.parent / name
            right = "searched" if path.is_dir() and mode in (0o600, 0o644) else "read"
            before = path.stat().st_mode & 0o777
            path.chmod(mode)
            [problem] = (await until(relay, "policies_not_reloaded", number))["problems"]
            assert problem.endswith(said.format(path, right, mode=mode)), what
            assert await is_sealed(relay, sink, recipient), what
            assert not await is_sealed(relay, sink, "x@elsewhere.example")
            path.chmod(before)
            await until(relay, "policies_loaded", number)
            assert await is_sealed(relay, sink, recipient), what
    assert "policy_file_gone" not in relay.log


async def test_a_relay_that_starts_then_has_the_set_from_before_or_says_what_to_do_and_does_not_start(
    site: Site, sink: Sink
) -> None:
    closed = site.directory.parent / "sets/1/d1.example"
    closed.chmod(0o644)
    with pytest.raises(DidNotStart, match=r"owner root:root\): .*look at the link: ls -ld .*/alice/policies\n"):
        async with relay_process(site, before=AS_NOBODY):
            pass
    closed.chmod(0o755)
    async with relay_process(site, before=AS_NOBODY):
        pass
    closed.chmod(0o644)
    async with relay_process(site, before=AS_NOBODY) as relay:
        assert await is_sealed(relay, sink, "x@d1.example")
        await until(relay, "policies_not_reloaded")


async def test_commands_of_a_user_who_may_not_look_fail_and_say_why(site: Site) -> None:
    top = site.directory.parent
    mail = top / "mail.eml"
    mail.write_bytes(mails.plain())
    commands = (
        ("check",), ("explain", "--offline", "a@alice.example", "x@d1.example"), ("list",),
        ("simulate", mail), ("test",), ("install", top / "sets/1"), ("diff", top / "sets/1", top / "sets/1"),
    )  # fmt: skip
    for name in ("sets/1/d1.example", "sets/1", "sets"):
        (top / name).chmod(0o644)
        said = f"{top / name}: cannot be searched by nobody: Permission denied (mode 0644, owner root:root): "
        for command, *arguments in commands:
            config = ("--config", site.config_file)
            status, errors, _ = await relay_command.run("policy", command, *config, *arguments, before=AS_NOBODY)
            assert status in (1, 2), (name, command)
            assert said in errors, (name, command)
        (top / name).chmod(0o755)
    status, errors, _ = await relay_command.run("policy", "check", *config, before=AS_NOBODY)
    assert status == 0, errors
    (top / "mails/closed").mkdir(parents=True)
    (top / "mails/closed").chmod(0o711)
    status, errors, _ = await relay_command.run("policy", "simulate", *config, top / "mails", before=AS_NOBODY)
    assert (status, f"{top}/mails/closed: cannot be read by nobody" in errors) == (1, True), errors


async def test_root_hears_what_the_relay_may_not_look_at(site: Site) -> None:
    top = site.directory.parent
    policies = ("policy", "check", "--config", site.config_file)
    assert (await relay_command.run(*policies))[0] == 0
    for name, mode, _ in CLOSED.values():
        before = (top / name).stat().st_mode & 0o777
        (top / name).chmod(mode)
        status, errors, _ = await relay_command.run(*policies)
        said = rf"{top / name}: cannot be (searched|read) by nobody"
        assert status == 1
        assert re.search(said, errors), (name, errors)
        assert denied(site).format(mode=mode) in errors
        new = shutil.copytree(top / "sets/1", top / "sets/2") if name.startswith("sets/1/") else top / "sets/1"
        status, errors, _ = await relay_command.run("policy", "install", "--config", site.config_file, new)
        assert (status, "nobody" in errors) == (1, True), (name, errors)
        assert (site.directory / "policies").readlink() == Path("../sets/1")
        (top / name).chmod(before)
        shutil.rmtree(top / "sets/2", ignore_errors=True)
