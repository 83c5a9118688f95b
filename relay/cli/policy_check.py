"""`qumail-relay policy check`, `test` and `explain`: what is wrong with the policy files, and what they decide.
Standard: every fault is one line, `file:line: what, how to mend it`; exit status 0 fine, 1 wrong, 2 usage.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import click

from relay.cli.options import InputFile, ThereIs, config_option
from relay.cli.output import json_option, plain_console, print_json
from relay.cli.policy_config import (
    go_on_as_relay,
    say_all_in_clear,
    say_if_not_in_force,
    say_what_stands,
)
from relay.cli.policy_list import listed, print_files
from relay.cli.policy_print import print_explanation
from relay.cli.policy_site import PolicySite, load_site, look_now
from relay.errors import ConfigError
from relay.formats import mime
from relay.mail import MAILBOX
from relay.policy.content import MessageFacts
from relay.policy.expected import DescribedMessage, failures, login_of
from relay.policy.findings import Doubt, files_not_read, quantum_keys_cut
from relay.policy.names import printable
from relay.policy.traffic import MAX_MESSAGE_OCTETS


@click.command()
@config_option
@click.option("--strict", is_flag=True, help="Exit with 1 for what is doubtful, too.")
@json_option()
def check(config_file: Path, strict: bool, as_json: bool) -> None:
    """Say what is wrong or doubtful in the policy files, or list them.

    Doubtful are rules that never apply, levels that this relay or a peer cannot do, and mail in clear.
    """
    go_on_as_relay(config_file)
    site = load_site(config_file, tested=True)
    say_all_in_clear(site.config)
    say_if_not_in_force(site.config, site.policies.version)
    findings = _doubtful(site)
    if as_json:
        print_json(
            {
                "directory": str(site.policies.directory),
                "version": site.policies.version,
                "files": len(site.policies.files),
                "doubtful": [dict(zip(("file", "line", "what"), each, strict=True)) for each in findings],
            }
        )
    else:
        rows = [listed(file, site.policies) for _, file in sorted(site.policies.files.items())]
        print_files(rows)
        click.echo(f"{len(rows)} policy files, version {site.policies.version}, nothing wrong.")
        if in_clear := sum("clear" in row.codes and "inside" not in row.codes for row in rows):
            click.echo(click.style(f"In clear: {in_clear} of them.", fg="red", bold=True))
        for each in findings:
            click.echo(f"doubtful: {each}")
        for hint in quantum_keys_cut(site.policies):
            click.echo(f"hint: {hint}")
        if not_read := files_not_read(site.policies.directory):
            click.echo(f"hint: {printable(f'{site.policies.directory}: {not_read}')}")
    if strict and findings:
        sys.exit(1)


def _doubtful(site: PolicySite) -> list[Doubt]:
    try:
        return list(site.doubts())
    except ConfigError as error:
        return [Doubt(str(site.policies.directory), 1, problem) for problem in error.problems]


@click.command()
@config_option
@json_option()
@click.argument("directory", required=False, type=ThereIs(only_directory=True))
def test(config_file: Path, as_json: bool, directory: Path | None) -> None:
    """Run tests.toml; exit with 1 where a test fails."""
    go_on_as_relay(config_file)
    site = load_site(config_file, directory)
    failed = failures(site.policies.tests, site.policies)
    if directory is None:
        say_if_not_in_force(site.config, site.policies.version)
    if as_json:
        print_json({"version": site.policies.version, "tests": len(site.policies.tests), "failed": failed})
    else:
        for each in failed:
            click.echo(each)
        click.echo(f"{len(site.policies.tests)} tests, {len(failed)} failed.")
    if failed:
        sys.exit(1)


@click.command()
@config_option
@click.option("--offline", is_flag=True, help="Ask no KME.")
@click.option("--message", type=InputFile(), help="A message file.")
@click.option(
    "--login",
    help='Who submits it: a user\'s name, or "<>" for nobody. Not known without, or nobody where the relay is told and '
    "no message is given.",
)
@json_option()
@click.argument("sender")
@click.argument("recipient")
def explain(
    config_file: Path,
    offline: bool,
    message: BinaryIO | None,
    login: str | None,
    as_json: bool,
    sender: str,
    recipient: str,
) -> None:
    """Say how mail from SENDER to RECIPIENT is sealed, and why.

    For mail that waits in Postfix's queue, `postqueue -p` shows both addresses. Without a message it is about a small
    one from SENDER that has nothing else in it, as a test in tests.toml is.

    SENDER may be "<>", the null sender. No key is taken. The exit status is 1 where no policy covers the recipient.
    """
    sender = "" if sender == "<>" else sender
    for address, called, null in ((sender, "SENDER", ", or <>"), (recipient, "RECIPIENT", "")):
        if not MAILBOX.fullmatch(address) and (address or not null):  # no listener takes it, whatever the policies say
            raise click.BadParameter(f"write user@domain{null}; SMTP refuses any other", param_hint=called)
    go_on_as_relay(config_file)
    site = load_site(config_file)
    say_all_in_clear(site.config)
    say_if_not_in_force(site.config, site.policies.version)
    content = (
        MessageFacts(mime.as_sent(message.read(MAX_MESSAGE_OCTETS + 1)), "" if login == "<>" else login)
        if message is not None
        else DescribedMessage.small(sender, login_of(login, site.policies.site))
    )
    explanation = site.policies.explain(sender, recipient, content)
    now = asyncio.run(look_now(site, explanation, content, offline=offline))
    say_what_stands(site.config, explanation.decision.peer if explanation.decision is not None else None)
    if as_json:
        print_json(asdict(explanation) | {"now": asdict(now)})
    else:
        print_explanation(plain_console(), explanation, now)
    if explanation.decision is None:
        raise SystemExit(1)
