"""Every metric of the relay, by name: this is the public set, and deploy/METRICS.md is made from it.
Names stay; what a stranger sends never becomes a label. What no peer can be named for has peer "".
"""

from __future__ import annotations

from functools import cache
from typing import Final

from relay.counting import key_metrics
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

_LISTENER = "listener: smtp, lmtp, submission, milter, imap; relay (its own mail)"
_MAIL_LABELS = ("direction", "listener", "peer", "level", "outcome")
_STEP_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_LAG_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

# Mail

MAILS: Final = Metric(
    "qumail_mails_total",
    "counter",
    "Delivery attempts, one for each group of recipients with the same peer, level and outcome. "
    f"{_LISTENER}. level: the layers from the inside out (pqc+aes), plaintext, or none if not sealed or opened so far. "
    "outcome: delivered, inside (in clear to a domain of ours), held, refused, quarantined, consumed (mail to the "
    "canary's address), repeated (delivered before)",
    _MAIL_LABELS,
)
RECIPIENTS: Final = Metric(
    "qumail_recipients_total",
    "counter",
    "Recipients of the mails in qumail_mails_total",
    _MAIL_LABELS,
)
FAILURES: Final = Metric(
    "qumail_failures_total",
    "counter",
    "Causes of the outcomes held and refused",
    ("direction", "reason"),
)
HELD_FIRST: Final = Metric(
    "qumail_mails_first_held_total",
    "counter",
    "Mails held for a recipient for the first time",
    ("direction",),
)
HELD_RECIPIENTS: Final = Metric(
    "qumail_held_recipients",
    "gauge",
    "Recipients whose held mail waits in the mail server's queue. cause: policy (none, or no level possible), keys, "
    "next hop, store, other",
    ("direction", "cause"),
    together="max",
)
HELD_SECONDS: Final = Metric(
    "qumail_held_longest_seconds",
    "gauge",
    "Longest time since the first hold of one of these",
    ("direction", "cause"),
    together="max",
)
REJECTIONS: Final = Metric(
    "qumail_rejections_total",
    "counter",
    "Mail turned away before its content. A recipient held or refused by policy at RCPT counts as a mail of level none",
    ("direction", "listener", "reason"),
)
STEP_SECONDS: Final = Metric(
    "qumail_step_seconds",
    "histogram",
    "Time of a step. step: begin (what earlier attempts left), seal, ledger, check (signatures and tripwire), deliver, "
    "open, quarantine. Within these: policy, verify (signatures of arriving mail), admit (keys and recipients to the "
    "disk). Over all: all (from the end of the content to the answer, of mails delivered or put aside)",
    ("direction", "step"),
    _STEP_BUCKETS_S,
)
TRIPWIRE: Final = Metric(
    "qumail_tripwire_total",
    "counter",
    "Mails held because they were about to leave otherwise than policy wants: a fault of the relay",
)
INTERRUPTED: Final = Metric(
    "qumail_deliveries_interrupted_total",
    "counter",
    "Recipients who may get a mail twice, as a relay was killed or cut off. kind: outgoing, incoming, opened",
    ("kind",),
)

# Policies and certificates

POLICY: Final = Metric("qumail_policy_info", "gauge", "1 for the version in force", ("version",), together="max")
POLICY_FILES: Final = Metric("qumail_policy_files", "gauge", "Policy files in force", together="max")
POLICY_RELOADS: Final = Metric(
    "qumail_policy_reloads_total",
    "counter",
    "Readings of changed policy files, by each process. outcome: loaded, broken",
    ("outcome",),
)
POLICY_PROBLEMS: Final = Metric(
    "qumail_policy_problems",
    "gauge",
    "Faults in the policy files now; above 0 an older set is in force",
    together="max",
)
POLICY_TESTS_FAILING: Final = Metric(
    "qumail_policy_tests_failing",
    "gauge",
    "Failing tests in tests.toml of the policies in force",
    together="max",
)
POLICY_WAITS: Final = Metric(
    "qumail_policy_edit_waits_seconds",
    "gauge",
    "Time for which an edit of policy files has waited",
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
    "End of a certificate. of: kme_ca, kme_client, kme_server (name: the KME), site (name: the role), peer (the first "
    "to end), smime (name: site, CA, CRL, or a domain of others), submission, status",
    ("of", "name"),
    together="min",
)

# What is put aside, and what is written down

QUARANTINE_PUT: Final = Metric(
    "qumail_quarantine_put_total",
    "counter",
    "Mails put in quarantine. reason: as in `quarantine list`; again: yes if the mail was there already",
    ("reason", "again"),
)
QUARANTINE_LAG: Final = Metric(
    "qumail_quarantine_held_for_key_total", "counter", "Holds of a mail because its key may still come"
)
QUARANTINE_FULL: Final = Metric(
    "qumail_quarantine_full_total", "counter", "Holds of a mail because the quarantine had no room"
)
QUARANTINE_NOTICES: Final = Metric(
    "qumail_quarantine_notices_total", "counter", "Notices to recipients. outcome: sent, failed", ("outcome",)
)
QUARANTINE_MESSAGES: Final = Metric(
    "qumail_quarantine_messages",
    "gauge",
    "Messages in quarantine. peer: named in the sealed layers, else by the sender's domain; neither is verified",
    ("reason", "peer"),
    together="max",
)
QUARANTINE_BYTES: Final = Metric("qumail_quarantine_bytes", "gauge", "Size of these messages", together="max")
QUARANTINE_LIMIT: Final = Metric("qumail_quarantine_limit_bytes", "gauge", "Limit of their size", together="max")
LEDGER: Final = Metric(
    "qumail_ledger_entries_total",
    "counter",
    "Lines written into the ledger. event: downgrade, plaintext, shadow",
    ("event",),
)
LEDGER_FAILURES: Final = Metric(
    "qumail_ledger_failures_total", "counter", "Holds of a mail because its line could not be written"
)
AUDIT_WRITABLE: Final = Metric(
    "qumail_audit_writable",
    "gauge",
    "1 while the audit record can be written; 0 holds mail that needs a line of the ledger",
    together="min",
)
JOURNAL_BYTES: Final = Metric(
    "qumail_journal_bytes",
    "gauge",
    "Size of the files beside the store, with reserved room. journal: keys (received, not yet in the store), sent "
    "(mail that has just left)",
    ("journal",),
    together="max",
)
WAITING: Final = Metric(
    "qumail_waiting_recipients",
    "gauge",
    "Recipients whose sealed copy waits in the store for the mail server's next attempt",
    together="max",
)
STORE_WRITABLE: Final = Metric(
    "qumail_store_writable", "gauge", "1 while the store can be written; 0 holds all mail", together="min"
)

KEY_RECEIVER_SILENT: Final = Metric(
    "qumail_key_receiver_silent_seconds",
    "gauge",
    "Silence of the process that fetches keys of arriving mail; 0 while it answers",
    together="max",
)
DISK_FREE: Final = Metric(
    "qumail_disk_free_bytes", "gauge", "Free room on the disk of the state directory", together="min"
)

# Mailboxes

MAILBOX_UNWATCHED: Final = Metric(
    "qumail_mailbox_unwatched_since_timestamp_seconds",
    "gauge",
    "Since when a mailbox is not watched; absent while it is. account: NAME of [imap.NAME]; cause: connection, login "
    "(refused), folder, settings, error (unforeseen)",
    ("account", "cause"),
    together="min",
)

# The canary

CANARY_INTERVAL: Final = Metric("qumail_canary_interval_seconds", "gauge", "`every` of [canary]", together="max")
CANARY_LIMIT: Final = Metric(
    "qumail_canary_limit_seconds",
    "gauge",
    "Age that raises canary_late: `every` and `late_after` of [canary] together",
    together="max",
)
CANARY_SENT: Final = Metric(
    "qumail_canary_sent_total", "counter", "Canaries that have left for a peer's relay", ("peer",)
)
CANARY_RETURNED: Final = Metric(
    "qumail_canary_returned_total", "counter", "Receipts of a peer's relay, one for each canary", ("peer",)
)
CANARY_ANSWERED: Final = Metric(
    "qumail_canary_answered_total", "counter", "Receipts that have left for canaries of a peer", ("peer",)
)
CANARY_DROPPED: Final = Metric(
    "qumail_canary_dropped_total",
    "counter",
    "Mail to the canary's address without effect. reason: clear text, bounce, unreadable, not named, repeated, "
    "unprotected, other sender, malformed, unexpected (a receipt too many or late), too often, not answered, busy",
    ("reason",),
)
UNSEALED_FROM_PEER: Final = Metric(
    "qumail_unsealed_from_peer_total",
    "counter",
    "Unsealed mails in a peer's name. by: sender (its domain in MAIL FROM), author (in From alone)",
    ("peer", "by"),
)
UNSEALED_AT_PEER: Final = Metric(
    "qumail_unsealed_at_peer_total",
    "counter",
    "Unsealed mails with our domains in MAIL FROM, reported by the peer's relay",
    ("peer",),
)
CANARY_AGE: Final = Metric(
    "qumail_canary_age_seconds",
    "gauge",
    "Time since a canary to this peer came back, or since the first was sent; absent for peers without canaries",
    ("peer",),
    together="max",
)
CANARY_ROUND_TRIP: Final = Metric(
    "qumail_canary_round_trip_seconds",
    "gauge",
    "Time from sending the last returned canary to its receipt",
    ("peer",),
    together="max",
)

# Alarms

ALARM: Final = Metric(
    "qumail_alarm",
    "gauge",
    "1 while an alarm stands. severity: critical, warning",
    ("alarm", "severity"),
    together="max",
)
ALARMS_BEGUN: Final = Metric("qumail_alarms_total", "counter", "Alarms that have begun", ("alarm",))
ALARM_NOTICES: Final = Metric(
    "qumail_alarm_notices_total",
    "counter",
    "Notices ([alarms]). way: mail, command; outcome: sent, failed",
    ("way", "outcome"),
)

# The processes

READY: Final = Metric("qumail_ready", "gauge", "As /readyz: 1 while mail is sealed or held safely", together="min")
WORKERS: Final = Metric("qumail_workers", "gauge", "Serving processes", together="max")
STARTED: Final = Metric(
    "qumail_start_timestamp_seconds", "gauge", "Start of the process that has served longest", together="min"
)
BUILD: Final = Metric("qumail_build_info", "gauge", "1 for the version of the relay", ("version",), together="max")
LOOP_LAG: Final = Metric(
    "qumail_event_loop_lag_seconds",
    "histogram",
    "Lag of the event loop, measured four times a second in each process",
    (),
    _LAG_BUCKETS_S,
)
RESIDENT: Final = Metric(
    "qumail_memory_resident_bytes", "gauge", "Memory of the serving processes, each including shared memory"
)
MESSAGE_MEMORY: Final = Metric("qumail_messages_memory_bytes", "gauge", "Memory of messages in flight")
MESSAGE_MEMORY_LIMIT: Final = Metric(
    "qumail_messages_memory_limit_bytes", "gauge", "Limit of this memory; at the limit new mail waits, then is held"
)


@cache
def all_metrics() -> dict[str, Metric]:
    """By name, those of keys first, in the order of the files."""
    defined = [*vars(key_metrics).values(), *globals().values()]
    metrics = [each for each in defined if isinstance(each, Metric)]
    return {each.name: each for each in metrics}
