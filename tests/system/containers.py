"""The two sites of deploy/container under podman: `python -m tests.system.containers`, as root, outside the suite.
It builds the image, has mail go both ways, ends a site gently and by force, and says what it saw; only images are left behind.

The image's base comes from debootstrap, and its package from this tree, so that no registry is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy" / "container"
BASE = "docker.io/library/debian:trixie-slim"
NEEDED = ("podman", "debootstrap", "runc", "netavark", "aardvark-dns", "nftables")
WAIT_S = 120.0
NAME = "qumail-containers"


def say(text: str) -> None:
    """Progress, at once."""
    print(text, flush=True)  # noqa: T201


class Engine:
    """podman, with settings of its own that work where the limits of the caller may not be raised."""

    def __init__(self, directory: Path) -> None:
        settings = directory / "containers.conf"
        settings.write_text('[containers]\ndefault_ulimits = []\n[engine]\nruntime = "runc"\n')
        self._environment = os.environ | {"CONTAINERS_CONF": str(settings), "PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}

    def __call__(self, *words: str | Path, check: bool = True) -> str:
        """What a command says. Raises CalledProcessError where it fails, unless `check` is False."""
        done = subprocess.run(
            ["podman", *map(str, words)], env=self._environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            say(done.stdout[-2000:] + done.stderr[-2000:])
            done.check_returncode()
        return done.stdout + done.stderr


def until(what: str, is_so: Callable[[], bool]) -> None:
    """Waits for it. Exits where it does not come."""
    end = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > end:
            sys.exit(f"it did not come: {what}")
        time.sleep(0.5)
    say(f"  {what}")


def built(podman: Engine, directory: Path) -> None:
    """The image, on a base that debootstrap makes, with the package of this tree."""
    if podman("image", "exists", BASE, check=False) or "true" not in podman("images", "--format", "true", BASE):
        say("base: debootstrap")
        base = directory / "base"
        subprocess.run(["debootstrap", "--variant=minbase", "trixie", base], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["tar", "-C", base, "-cf", directory / "base.tar", "."], check=True)
        podman("import", directory / "base.tar", BASE)
    package = directory / "build" / "package"
    package.mkdir(parents=True)
    say("package")
    system = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # Debian's Python, not that of the tests
    subprocess.run([ROOT / "deploy/debian/build", package], env=os.environ | system, check=True, capture_output=True)
    say("image")
    limits = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
    podman(
        "build", *limits, "--runtime", shutil.which("runc") or "runc", "--network=host",
        "--build-context", f"build={package.parent}", "-t", "qumail-relay", "-f", CONTAINER / "Containerfile", ROOT,
    )  # fmt: skip


def started(podman: Engine, services: dict[str, Any]) -> None:
    """Each service as compose.yaml has it, on a network of their own."""
    podman("network", "create", NAME)
    for name, service in services.items():
        volumes = [word for each in service["volumes"] for word in ("--volume", f"{NAME}-{each}")]
        aliases = [name, *service.get("networks", {}).get("default", {}).get("aliases", [])]
        podman(
            "run", "--detach", "--name", f"{NAME}-{name}", "--hostname", service.get("hostname", name),
            "--network", NAME, *(word for each in aliases for word in ("--network-alias", each)), *volumes,
            "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096", "qumail-relay", *service["command"],
        )  # fmt: skip


def removed(podman: Engine, services: dict[str, Any]) -> None:
    """All that was started, and its volumes."""
    podman("rm", "--force", "--time", "0", *(f"{NAME}-{name}" for name in services), check=False)
    volumes = {each.split(":")[0] for service in services.values() for each in service["volumes"]}
    podman("volume", "rm", "--force", *(f"{NAME}-{each}" for each in volumes), check=False)
    podman("network", "rm", "--force", NAME, check=False)


def serves(podman: Engine, site: str, times: int) -> None:
    """Waits until it has begun to serve so many times."""
    until(f"{site} serves", lambda: podman("logs", f"{NAME}-{site}").count('"relay_serves"') >= times)


def mail_arrives(podman: Engine, sender: str, recipient: str, subject: str) -> None:
    """A mail between the sites comes, and was sealed on its way."""
    here, there = (each.partition("@")[2].partition(".")[0] for each in (sender, recipient))
    words = ("swaks", "--server", "127.0.0.1", "--from", sender, "--to", recipient, "--header", f"Subject: {subject}")
    until(f"{sender}: taken", lambda: "250 2.0.0" in podman("exec", f"{NAME}-{here}", *words, check=False))
    box = f"/home/{recipient.partition('@')[0]}/Maildir/new"
    look = f"grep -rl 'Subject: {subject}' {box} | xargs grep -h ^X-QuMail-Protection"
    mark = f"X-QuMail-Protection: aes; peer={here}"

    def has_come() -> bool:
        podman("exec", f"{NAME}-{here}", "postqueue", "-f", check=False)  # the other site may not have listened yet
        return mark in podman("exec", f"{NAME}-{there}", "sh", "-c", look, check=False)

    until(f"{recipient}: {mark}", has_come)


def main() -> None:
    """Everything in turn."""
    argparse.ArgumentParser(prog="python -m tests.system.containers", description=__doc__).parse_args()
    if missing := [each for each in ("podman", "debootstrap", "runc") if shutil.which(each) is None]:
        sys.exit(f"{', '.join(missing)}: not here; apt-get install {' '.join(NEEDED)}")
    lines = (CONTAINER / "compose.yaml").read_text().splitlines()
    services = json.loads("\n".join(line for line in lines if not line.startswith("#")))["services"]
    with tempfile.TemporaryDirectory() as name:
        podman = Engine(Path(name))
        built(podman, Path(name))
        removed(podman, services)
        try:
            started(podman, services)
            serves(podman, "alice", 1)
            serves(podman, "bob", 1)
            mail_arrives(podman, "ann@alice.example", "ben@bob.example", "first")
            mail_arrives(podman, "ben@bob.example", "ann@alice.example", "back")
            for times, how in enumerate(("stop", "kill"), start=2):
                podman(how, f"{NAME}-bob")
                podman("start", f"{NAME}-bob")
                serves(podman, "bob", times)  # before that its name is unknown, and Postfix would send a bounce
                mail_arrives(podman, "ann@alice.example", "ben@bob.example", f"after-{how}")
        finally:
            removed(podman, services)
    say("CONTAINERS OK")


if __name__ == "__main__":
    main()
