"""`qumail-relay policy`: what is wrong with the policy files, what they decide, and what they would do with real mail.
Each command is loaded when it is called: a list over 100,000 files is there before what plans mail would be.
"""

from __future__ import annotations

import click

from relay.cli.lazy import LaterCommand, LazyGroup

COMMANDS = {
    "check": LaterCommand("policy_check:check", "Say what is wrong or doubtful in the policy files, or list them."),
    "diff": LaterCommand("policy_sets:diff", "Say whose mail two sets of policies treat otherwise, up or down."),
    "explain": LaterCommand("policy_check:explain", "Say how mail from SENDER to RECIPIENT is sealed, and why."),
    "install": LaterCommand("policy_sets:install", "Check, test and compare a set of policies, and put it into force."),
    "list": LaterCommand("policy_list:list_files", "List the policy files, or those that let mail out in clear."),
    "log": LaterCommand("policy_log:show_log", "Say which sets came into force, by whom, and what they weakened."),
    "simulate": LaterCommand("policy_traffic:simulate", "Say what the policies would do with files of mail."),
    "test": LaterCommand("policy_check:test", "Run tests.toml; exit with 1 where a test fails."),
}


@click.group(cls=LazyGroup, later=COMMANDS)
def policy() -> None:
    """Check the policy files, explain what they decide, and try them on real mail."""
