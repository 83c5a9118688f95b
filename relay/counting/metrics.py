"""Every metric of the relay, by name: this is the public set, and deploy/METRICS.md is made from it.
Standard: names stay; what a stranger sends never becomes a label. What no peer can be named for has peer "".
"""

from __future__ import annotations

from functools import cache
from typing import Final

from relay.counting.alarms import ALARMS
from relay.counting.metric import Metric

_DIRECTION = "direction: outgoing, incoming"
_DOOR = "door: smtp, lmtp, submission, milter, imap, relay (what it writes itself)"
_MAIL_LABELS = ("direction", "door", "peer", "level", "outcome")
_STEP_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
_CALL_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WAIT_BUCKETS_S = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LAG_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

# Mail

MAILS: Final = Metric(
    "qumail_mails_total",
    "counter",
    "Mails by what became of them: each try of a mail counts once for each group of its recipients who share peer, "
    f"level and outcome. {_DIRECTION}; {_DOOR}; level: the layers from the inside out (pqc+aes), plaintext, or none "
    "where it did not come so far; outcome: delivered, inside (in clear to a domain of ours), held, refused, "
    "quarantined, consumed (for the canary's address, where it ends), repeated (whoever has it already)",
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
    f"How long ago the first of these was held first. {_DIRECTION}",
    ("direction",),
    together="max",
)
REJECTIONS: Final = Metric(
    "qumail_rejections_total",
    "counter",
    f"What was turned away at a door, before there was a mail to count. {_DIRECTION}; {_DOOR}; "
    "reason: the class of the error (relay/errors.py), such as MessageTooBig, Overloaded (no memory for it) or "
    "SenderNotAllowed. Whom policy holds or refuses at RCPT counts as a mail of level none",
    ("direction", "door", "reason"),
)
STEP_SECONDS: Final = Metric(
    "qumail_step_seconds",
    "histogram",
    f"Time that each step of a mail took, one after the other, however it ended. {_DIRECTION}; step: all (from the end "
    "of the content to the answer), begin (what is known of it from earlier tries), seal (policy and keys included), "
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

# Keys

KEYS: Final = Metric(
    "qumail_keys_total",
    "counter",
    "Fresh keys by fate: issued = used + burnt + expired + in the pool, but for what a killed process had. fate: these",
    ("kme", "peer", "fate"),
)
KEYS_BURNT: Final = Metric(
    "qumail_keys_burnt_total",
    "counter",
    "Keys that were lost. cause: no answer, late answer, bad reply, seen before, not remembered, overtaken, trial, "
    "relay stops",
    ("kme", "cause"),
)
KEY_BITS_USED: Final = Metric(
    "qumail_key_bits_used_total", "counter", "Bits of key that sealed mail. level: otp, aes", ("peer", "level")
)
PAD_DISCARDED: Final = Metric(
    "qumail_pad_bytes_discarded_total", "counter", "Octets of keys that one-time pads had no use for", ("kme",)
)
KEYS_READY: Final = Metric("qumail_key_pool_keys", "gauge", "Keys that are ready", ("kme", "peer"))
KEYS_STORED: Final = Metric(
    "qumail_kme_stored_keys",
    "gauge",
    "Keys that the KME says it has; none where it has not said so for a minute",
    ("kme", "peer"),
    together="min",
)
STATUS_AGE: Final = Metric(
    "qumail_kme_status_age_seconds",
    "gauge",
    "Time since the KME said last what it has",
    ("kme", "peer"),
    together="min",
)
KEY_BITS: Final = Metric("qumail_kme_key_bits", "gauge", "The size of such a key", ("kme", "peer"), together="max")
KEY_REFILL: Final = Metric(
    "qumail_key_refill_bits_per_second", "gauge", "What the link was seen to make", ("kme", "peer"), together="max"
)
KEY_USE: Final = Metric(
    "qumail_key_use_bits_per_second", "gauge", "What sealed mail used over the last five minutes", ("kme", "peer")
)
KEYS_EMPTY: Final = Metric(
    "qumail_key_empty_seconds",
    "gauge",
    "Time until the keys are gone at the present rates; +Inf where they are not; none where it is not known now",
    ("kme", "peer"),
    together="min",
)
KEY_ALARM: Final = Metric(
    "qumail_key_alarm", "gauge", "1 where that is less than `alarm` of the KME", ("kme", "peer"), together="max"
)
KEY_WAIT: Final = Metric(
    "qumail_key_wait_seconds",
    "histogram",
    "Time that a mail waited for its key. use: key, pad",
    ("kme_group", "use"),
    _WAIT_BUCKETS_S,
)
KEYS_MISSED: Final = Metric(
    "qumail_keys_missed_total",
    "counter",
    "Times that a quantum key for a mail was not to be had, so that it was held, or went under another level that its "
    "policy lists. reason: the class of the error (relay/errors.py), such as KMEExhausted",
    ("peer", "reason"),
)
KEYS_RECEIVED: Final = Metric(
    "qumail_keys_received_total",
    "counter",
    "Keys of arriving mail that a KME was asked for. outcome: fetched, not_found, refused, not_stored, not_asked",
    ("kme_group", "outcome"),
)
KEYS_WITHHELD: Final = Metric(
    "qumail_keys_withheld",
    "gauge",
    "1 while no keys are drawn, as the store cannot remember them",
    ("kme",),
    together="max",
)
KME_REQUESTS: Final = Metric(
    "qumail_kme_requests_total",
    "counter",
    "Requests to a KME. call: status, enc_keys, dec_keys; outcome: ok, unreachable, busy, exhausted, bad_request, "
    "misconfigured, not_found, bad_reply, ambiguous, not_asked, cancelled",
    ("kme", "call", "outcome"),
)
RECEIVED_KEYS_REFUSED: Final = Metric(
    "qumail_received_keys_refused_total",
    "counter",
    "Replies to dec_keys that say nothing of keys: of a proxy, to wrong paths or methods, faults of the KME",
    ("kme",),
)
KME_SECONDS: Final = Metric(
    "qumail_kme_request_seconds",
    "histogram",
    "Time from sending a request to its whole answer",
    ("kme", "call"),
    _CALL_BUCKETS_S,
)
KME_RETRIES: Final = Metric(
    "qumail_kme_retries_total", "counter", "Second and further tries of a request", ("kme", "call")
)
KME_BREAKER: Final = Metric(
    "qumail_kme_breaker_state", "gauge", "0 closed, 1 half-open, 2 open", ("kme", "call"), together="max"
)
KME_DROPS: Final = Metric(
    "qumail_kme_drops_undelivered_keys",
    "gauge",
    "1 where the KME was seen to drop keys that the peer had not fetched",
    ("kme",),
    together="max",
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
    "Messages in quarantine. peer: whose domain the sender has, empty for everybody else",
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
    f"1 while an alarm stands, whatever it is about. alarm: {', '.join(ALARMS)}",
    ("alarm",),
    together="max",
)
ALARMS_BEGUN: Final = Metric("qumail_alarms_total", "counter", "Alarms that have begun. alarm: as above", ("alarm",))
ALARMS_TOLD: Final = Metric(
    "qumail_alarm_notices_total",
    "counter",
    "What [alarms] has tried to tell. way: mail, command; outcome: sent, failed",
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
    """By name, in the order of this file."""
    found = [each for each in globals().values() if isinstance(each, Metric)]
    return {each.name: each for each in found}
