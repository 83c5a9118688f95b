"""Every metric of the relay, by name: this is the public set, and deploy/METRICS.md is made from it.
Names stay; what a stranger sends never becomes a label. What no peer can be named for has peer "".
"""

from __future__ import annotations

from functools import cache
from typing import Final

from relay.counting import key_metrics
from relay.counting.alarms import ALARMS
from relay.counting.key_metrics import (
    KEY_ALARM as KEY_ALARM,
    KEY_BITS as KEY_BITS,
    KEY_BITS_USED as KEY_BITS_USED,
    KEY_REFILL as KEY_REFILL,
    KEY_USE as KEY_USE,
    KEY_WAIT as KEY_WAIT,
    KEYS as KEYS,
    KEYS_BURNT as KEYS_BURNT,
    KEYS_EMPTY as KEYS_EMPTY,
    KEYS_MISSED as KEYS_MISSED,
    KEYS_READY as KEYS_READY,
    KEYS_RECEIVED as KEYS_RECEIVED,
    KEYS_STORED as KEYS_STORED,
    KEYS_WITHHELD as KEYS_WITHHELD,
    KME_BREAKER as KME_BREAKER,
    KME_CERTIFICATES_REFUSED as KME_CERTIFICATES_REFUSED,
    KME_CLOCK as KME_CLOCK,
    KME_DROPS as KME_DROPS,
    KME_REQUESTS as KME_REQUESTS,
    KME_RETRIES as KME_RETRIES,
    KME_SECONDS as KME_SECONDS,
    PAD_DISCARDED as PAD_DISCARDED,
    RECEIVED_KEYS_REFUSED as RECEIVED_KEYS_REFUSED,
    STATUS_AGE as STATUS_AGE,
)
from relay.counting.metric import Metric

_DIRECTION = "direction: outgoing, incoming"
_LISTENER = "listener: where it came in, such as smtp, lmtp, submission, milter, imap; relay (what it writes itself)"
_MAIL_LABELS = ("direction", "listener", "peer", "level", "outcome")
_STEP_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_LAG_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

# Mail

MAILS: Final = Metric(
    "qumail_mails_total",
    "counter",
    "Mails by what became of them: each delivery attempt counts once for each group of its recipients who share peer, "
    f"level and outcome. {_DIRECTION}; {_LISTENER}; level: the layers from the inside out (pqc+aes), plaintext, or "
    "none where it did not come so far; outcome: delivered, inside (in clear to a domain of ours), held, refused, "
    "quarantined, consumed (for the canary's address, where it ends), repeated (for those who have it already)",
    _MAIL_LABELS,
)
RECIPIENTS: Final = Metric(
    "qumail_recipients_total",
    "counter",
    "The recipients of these mails; labels as for qumail_mails_total",
    _MAIL_LABELS,
)
FAILURES: Final = Metric(
    "qumail_failures_total",
    "counter",
    f"Why mails were held or refused: as qumail_mails_total with outcome held or refused. {_DIRECTION}; reason: the "
    "class of the error (relay/errors.py), such as KMEExhausted or NextHopUnavailable",
    ("direction", "reason"),
)
HELD_FIRST: Final = Metric(
    "qumail_mails_first_held_total",
    "counter",
    f"Mails held for a recipient for whom they had not been held before: retries do not count. {_DIRECTION}",
    ("direction",),
)
HELD_RECIPIENTS: Final = Metric(
    "qumail_held_recipients",
    "gauge",
    "Recipients for whom mail was held, and has not gone since: it waits in the queue of the mail server. "
    f"{_DIRECTION}; cause: policy (it covers nobody there, or lists no level that can be done), keys, next hop, "
    "store, other",
    ("direction", "cause"),
    together="max",
)
HELD_SECONDS: Final = Metric(
    "qumail_held_longest_seconds",
    "gauge",
    f"How long ago the first of these was held first. {_DIRECTION}; cause: as qumail_held_recipients",
    ("direction", "cause"),
    together="max",
)
REJECTIONS: Final = Metric(
    "qumail_rejections_total",
    "counter",
    f"What was turned away at a listener, before there was a mail to count. {_DIRECTION}; {_LISTENER}; "
    "reason: the class of the error (relay/errors.py), such as MessageTooBig, Overloaded (no memory for it), "
    "TooManyConnections or SenderNotAllowed. Whom policy holds or refuses at RCPT counts as a mail of level none",
    ("direction", "listener", "reason"),
)
STEP_SECONDS: Final = Metric(
    "qumail_step_seconds",
    "histogram",
    f"Time that each step of a mail took, one after the other, however it ended. {_DIRECTION}; step: all (from the end "
    "of the content to the answer, of mails that somebody got or that were put aside), begin (what earlier attempts "
    "left), seal (policy and keys included), "
    "ledger (where there is something for it), check (signatures and tripwire), deliver (the next hop, and noting what "
    "it has said), open (keys included), quarantine; within these: policy, verify (signatures of what arrives), "
    "admit (keys and recipients are on the disk)",
    ("direction", "step"),
    _STEP_BUCKETS_S,
)
TRIPWIRE: Final = Metric(
    "qumail_tripwire_total",
    "counter",
    "Mails that were about to leave otherwise than policy wants, and were held: a fault of the relay",
)
INTERRUPTED: Final = Metric(
    "qumail_deliveries_interrupted_total",
    "counter",
    "Recipients at whom a relay was at work when it was killed or cut off: they may get a mail twice. kind: outgoing, "
    "incoming, opened",
    ("kind",),
)

# Policies and certificates

POLICY: Final = Metric("qumail_policy_info", "gauge", "1 for the version in force", ("version",), together="max")
POLICY_FILES: Final = Metric("qumail_policy_files", "gauge", "Policy files in force", together="max")
POLICY_RELOADS: Final = Metric(
    "qumail_policy_reloads_total",
    "counter",
    "Times that policy files were read after a change, by each process. outcome: loaded, broken",
    ("outcome",),
)
POLICY_PROBLEMS: Final = Metric(
    "qumail_policy_problems",
    "gauge",
    "Faults in the policy files as they are now; above 0 an older set is in force",
    together="max",
)
POLICY_TESTS_FAILING: Final = Metric(
    "qumail_policy_tests_failing",
    "gauge",
    "Tests in tests.toml of the policies in force that fail, since a day has passed",
    together="max",
)
POLICY_WAITS: Final = Metric(
    "qumail_policy_edit_waits_seconds",
    "gauge",
    "For how long an edit of policy files has waited for its files to be quiet",
    together="max",
)
POLICY_ENDS: Final = Metric(
    "qumail_policy_ends_soon",
    "gauge",
    "Policy files and rules that end within two weeks, or have ended",
    together="max",
)
CERTIFICATE: Final = Metric(
    "qumail_certificate_end_timestamp_seconds",
    "gauge",
    "When a certificate ends, since 1970. of: kme_ca, kme_client, kme_server (name: the KME), site (name: the role), "
    "peer (name: the peer, whichever ends first), submission, status",
    ("of", "name"),
    together="min",
)

# What is put aside, and what is written down

QUARANTINE_PUT: Final = Metric(
    "qumail_quarantine_put_total",
    "counter",
    "Arrivals of mails that were put in quarantine. reason: as `quarantine list` has it; again: yes where it was there",
    ("reason", "again"),
)
QUARANTINE_LAG: Final = Metric(
    "qumail_quarantine_held_for_key_total", "counter", "Times that a mail was held because its key may still come"
)
QUARANTINE_FULL: Final = Metric(
    "qumail_quarantine_full_total", "counter", "Times that a mail was held because it found no room"
)
QUARANTINE_NOTICES: Final = Metric(
    "qumail_quarantine_notices_total", "counter", "Notices to recipients. outcome: sent, failed", ("outcome",)
)
QUARANTINE_MESSAGES: Final = Metric(
    "qumail_quarantine_messages",
    "gauge",
    "Messages in quarantine. peer: whom the sealed layers name, else whose domain the sender has (neither is "
    "verified), empty for everybody else",
    ("reason", "peer"),
    together="max",
)
QUARANTINE_BYTES: Final = Metric("qumail_quarantine_bytes", "gauge", "What they take", together="max")
QUARANTINE_LIMIT: Final = Metric("qumail_quarantine_limit_bytes", "gauge", "What they may take", together="max")
LEDGER: Final = Metric(
    "qumail_ledger_entries_total",
    "counter",
    "Lines that the relay has written into the ledger. event: downgrade, plaintext, shadow",
    ("event",),
)
LEDGER_FAILURES: Final = Metric(
    "qumail_ledger_failures_total", "counter", "Times that a line could not be written, and the mail was held"
)
AUDIT_WRITABLE: Final = Metric(
    "qumail_audit_writable",
    "gauge",
    "1 while the audit record can be written; while not, mail that needs a line of the ledger is held",
    together="min",
)
JOURNAL_BYTES: Final = Metric(
    "qumail_journal_bytes",
    "gauge",
    "What lies in files beside the store, the room they have taken included. journal: keys (received, on their way "
    "into the store), sent (what has just left)",
    ("journal",),
    together="max",
)
WAITING: Final = Metric(
    "qumail_waiting_recipients",
    "gauge",
    "Recipients for whom a sealed copy waits in the store until the mail server tries again",
    together="max",
)
STORE_WRITABLE: Final = Metric(
    "qumail_store_writable", "gauge", "1 while the store can be written; while it cannot, mail is held", together="min"
)

DISK_FREE: Final = Metric(
    "qumail_disk_free_bytes", "gauge", "What is free on the disk of the state directory", together="min"
)

# Mailboxes

MAILBOX_UNWATCHED: Final = Metric(
    "qumail_mailbox_unwatched_since_timestamp_seconds",
    "gauge",
    "Since when a mailbox cannot be watched, since 1970; none while it is. account: NAME of [imap.NAME]; cause: "
    "connection, login (it is refused), folder, settings, error (one that nobody foresaw)",
    ("account", "cause"),
    together="min",
)

# The canary

CANARY_INTERVAL: Final = Metric(
    "qumail_canary_interval_seconds", "gauge", "How often each peer is asked: `every` of [canary]", together="max"
)
CANARY_LIMIT: Final = Metric(
    "qumail_canary_limit_seconds",
    "gauge",
    "The age from which on the alarm canary_late stands: `every` and `late_after` of [canary] together",
    together="max",
)
CANARY_SENT: Final = Metric(
    "qumail_canary_sent_total", "counter", "Canaries that have left for a peer's relay", ("peer",)
)
CANARY_RETURNED: Final = Metric(
    "qumail_canary_returned_total", "counter", "Receipts of a peer's relay that counted: one for each canary", ("peer",)
)
CANARY_ANSWERED: Final = Metric(
    "qumail_canary_answered_total", "counter", "Receipts that have left for canaries of a peer", ("peer",)
)
CANARY_DROPPED: Final = Metric(
    "qumail_canary_dropped_total",
    "counter",
    "Mail to the canary's address that counted for nothing. reason: clear text, bounce, unreadable, not named, "
    "repeated, unprotected, other sender, malformed, unexpected (a receipt that answers nothing, or comes late), too "
    "often, not answered, busy",
    ("reason",),
)
UNSEALED_FROM_PEER: Final = Metric(
    "qumail_unsealed_from_peer_total",
    "counter",
    "Mails that came unsealed in a peer's name. by: sender (its domain in MAIL FROM), author (in From alone)",
    ("peer", "by"),
)
UNSEALED_AT_PEER: Final = Metric(
    "qumail_unsealed_at_peer_total",
    "counter",
    "Mails with our domains in MAIL FROM that came unsealed to a peer, as its relay says",
    ("peer",),
)
CANARY_AGE: Final = Metric(
    "qumail_canary_age_seconds",
    "gauge",
    "Time since a canary to this peer came back, or since asking began where none has; not there for peers that are "
    "not asked",
    ("peer",),
    together="max",
)
CANARY_ROUND_TRIP: Final = Metric(
    "qumail_canary_round_trip_seconds",
    "gauge",
    "Time from the sending of the last canary that came back to its receipt",
    ("peer",),
    together="max",
)

# Alarms

ALARM: Final = Metric(
    "qumail_alarm",
    "gauge",
    f"1 while an alarm stands, whatever it is about. severity: critical, warning; alarm: {', '.join(ALARMS)}",
    ("alarm", "severity"),
    together="max",
)
ALARMS_BEGUN: Final = Metric("qumail_alarms_total", "counter", "Alarms that have begun. alarm: as above", ("alarm",))
ALARM_NOTICES: Final = Metric(
    "qumail_alarm_notices_total",
    "counter",
    "Notices that [alarms] has tried to send. way: mail, command; outcome: sent, failed",
    ("way", "outcome"),
)

# The processes

READY: Final = Metric(
    "qumail_ready", "gauge", "What /readyz says: 1 while mail is sealed or held safely", together="min"
)
WORKERS: Final = Metric("qumail_workers", "gauge", "Processes that serve", together="max")
STARTED: Final = Metric(
    "qumail_start_timestamp_seconds", "gauge", "When the process that serves longest was started", together="min"
)
BUILD: Final = Metric("qumail_build_info", "gauge", "1 for the version of the relay", ("version",), together="max")
LOOP_LAG: Final = Metric(
    "qumail_event_loop_lag_seconds",
    "histogram",
    "How late the event loop comes to what is due, looked at four times a second in each process",
    (),
    _LAG_BUCKETS_S,
)
RESIDENT: Final = Metric(
    "qumail_memory_resident_bytes", "gauge", "Memory of the processes that serve, each with what it shares"
)
MESSAGE_MEMORY: Final = Metric("qumail_messages_memory_bytes", "gauge", "Memory that messages in flight hold")
MESSAGE_MEMORY_LIMIT: Final = Metric(
    "qumail_messages_memory_limit_bytes", "gauge", "What they may hold; beyond it new mail waits, then is held"
)


@cache
def all_metrics() -> dict[str, Metric]:
    """By name, those of keys first, in the order of the files."""
    defined = [*vars(key_metrics).values(), *globals().values()]
    metrics = [each for each in defined if isinstance(each, Metric)]
    return {each.name: each for each in metrics}
