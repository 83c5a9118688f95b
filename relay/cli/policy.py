"""`qumail-relay policy`: what is wrong with the policy files, what they decide, and what they would do with real mail.
Each command is loaded when it is called: a list over 100,000 files is there before what plans mail would be.
"""

from __future__ import annotations

import click

from relay.cli.lazy import LaterCommand, LazyGroup

COMMANDS = {
    "check": LaterCommand(
        "policy_check:check", "Say what is wrong with the policy files and what is doubtful, or list what they mean."
    ),
    "diff": LaterCommand(
        "policy_sets:diff",
        "Say whose mail the policies in NEW would treat otherwise than those in OLD, up or down.",
    ),
    "explain": LaterCommand(
        "policy_check:explain",
        "Say how mail from SENDER to RECIPIENT is sealed, which file and line decide it, and what would happen now.",
    ),
    "install": LaterCommand(
        "policy_sets:install",
        "Check the policies in DIRECTORY, run their tests, say what they change, and put them into force.",
    ),
    "list": LaterCommand("policy_list:list_files", "List the policy files, or those that let mail out in clear."),
    "log": LaterCommand(
        "policy_log:show_log",
        "Say which sets of policies came into force, who put them there, and what they weakened, the newest first.",
    ),
    "simulate": LaterCommand(
        "policy_traffic:simulate",
        "Say what the policies would do with MESSAGES: files, directories, maildirs, mboxes.",
    ),
    "test": LaterCommand(
        "policy_check:test",
        "Run the tests in tests.toml on the policies, or on those in DIRECTORY; exit with 1 where one fails.",
    ),
}


@click.group(cls=LazyGroup, later=COMMANDS)
def policy() -> None:
    """Check the policy files, explain what they decide, and try them on real mail."""
