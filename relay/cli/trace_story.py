"""Collects the records and log lines about one mail, over all its passes through the relay.
A mail may pass twice (in by one filter, out by the other); the final outcome is that of the last pass.

The mail server's queue ID links the passes. The server returns it when it accepts a mail (`queued_as`), and passes it
on by XFORWARD or in a Received field (`queue_id`). Queue IDs are reused, so Message-IDs must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from relay.policy.names import printable

NAMES = ("mail", "queue_id", "queued_as", "message_id", "sealed")
"""Fields of records and log lines that identify a mail."""
_LEAD_ON = ("queue_id", "queued_as")
_NOT_TOLD = ("event", "mail", "queue_id", "message_id", "level", "timestamp", "number", "time", "previous", "worker")

Step = dict[str, Any]
"""A record or a log line, with `time` and `source`."""


@dataclass
class Story:
    """All that is known of a mail: the names asked for, the names found from these, and its records and log lines."""

    names: set[str]
    mails: set[str] = field(default_factory=set)
    queue_ids: set[str] = field(default_factory=set)
    message_ids: set[str] = field(default_factory=set)
    steps: list[Step] = field(default_factory=list)

    @property
    def known(self) -> int:
        """A count that grows with each name found: earlier lines may then be about the mail after all."""
        return len(self.mails) + len(self.queue_ids)

    @property
    def words(self) -> list[bytes]:
        """Texts of which each record about the mail contains at least one."""
        return [name.encode() for name in self.names | self.mails | self.queue_ids]

    def take(self, said: dict[str, Any], source: str, when: str) -> None:
        """Adds a record or log line if it is about this mail."""
        if not self._is_about(said):
            return
        for name, values in (
            ("mail", self.mails), ("message_id", self.message_ids), *((each, self.queue_ids) for each in _LEAD_ON)
        ):  # fmt: skip
            if value := said.get(name):
                values.add(str(value))
        self.steps.append({"time": when, "source": source} | said)

    def _is_about(self, said: dict[str, Any]) -> bool:
        if said.get("mail") in self.mails or not self.names.isdisjoint(str(said.get(name)) for name in NAMES):
            return True
        if self.queue_ids.isdisjoint(str(said.get(name)) for name in _LEAD_ON):
            return False
        return not said.get("message_id") or not self.message_ids or said["message_id"] in self.message_ids


def story_lines(story: Story) -> Iterator[str]:
    """The history for people: each attempt with its lines, in order, then the outcome."""
    for mail in dict.fromkeys(step["mail"] for step in story.steps if step.get("mail")):
        steps = [step for step in story.steps if step.get("mail") == mail]
        values = {name: str(step[name]) for step in steps for name in NAMES[1:] if step.get(name)}
        yield printable(f"mail {mail}" + "".join(f", {name} {value}" for name, value in values.items()))
        for step in steps:
            yield printable(f"  {step['time']}  {_step_text(step)}")
    yield from map(printable, _in_the_end(story))


def _in_the_end(story: Story) -> Iterator[str]:
    """The last outcome of each recipient by the records, latest last."""
    last: dict[str, Step] = {}
    for step in story.steps:
        if step["source"] == "record" and step.get("event") == "mail":
            for recipient in step.get("recipients", ()):
                last.pop(recipient, None)
                last[recipient] = step
    groups: dict[tuple[str, ...], list[str]] = {}
    for recipient, step in last.items():
        outcome = f"{outcome_of(step)} ({step.get('direction')})"
        groups.setdefault((outcome, *_why(step), *_where(step)), []).append(recipient)
    for (outcome, *why), recipients in groups.items():
        yield "; ".join([f"so far {outcome}, {len(recipients)} recipients", *why])


def _step_text(step: Step) -> str:
    """The step as one line of text."""
    if step["source"] == "record" and step.get("event") == "mail":
        return _record_told(step)
    rest = {name: value for name, value in step.items() if name not in (*_NOT_TOLD, "source") and value not in ("", [])}
    words = " ".join(f"{name}={value}" for name, value in rest.items())
    return f"{'ledger: ' if step['source'] == 'record' else ''}{step.get('event', '')} {words}".rstrip()


def _record_told(record: Step) -> str:
    level = f"{record.get('level')} {'for' if record.get('direction') == 'outgoing' else 'from'} {record.get('peer')}"
    parts = [
        f"record {record.get('number')}: {outcome_of(record)}, {len(record.get('recipients', ()))} recipients",
        level if record.get("peer") else str(record.get("level")),
        f"keys {' '.join(record['key_IDs'])}" if record.get("key_IDs") else "",
        f"by {record['policy']}" if record.get("policy") else "",
        *_why(record),
        *_where(record),
    ]
    return "; ".join(filter(None, parts))


def outcome_of(record: Step) -> str:
    """The outcome in words; acceptance by the next hop is not yet delivery to a mailbox."""
    return "handed on" if record.get("outcome") == "delivered" else str(record.get("outcome"))


def _why(record: Step) -> list[str]:
    return [f"{record['reason']}: {record.get('cause', '')}"] if record.get("reason") else []


def _where(record: Step) -> list[str]:
    queued = f", queued there as {record['queued_as']}" if record.get("queued_as") else ""
    return [f"at {record['next_hop']}{queued}"] if record.get("next_hop") else []
