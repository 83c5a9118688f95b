"""The metrics of keys and of the KMEs that give them; a part of the public set (metrics.py).
Standard: ETSI GS QKD 014 V1.1.1 names. Nothing here needs the rest of the relay: programs count with these alone.
"""

from __future__ import annotations

from typing import Final

from relay.counting.metric import Metric

_CALL_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WAIT_BUCKETS_S = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

KEYS: Final = Metric(
    "qumail_keys_total",
    "counter",
    "Fresh keys. fate: issued, used, burnt, expired; issued is the sum of the others and of those in the pool, except "
    "for keys of a killed process",
    ("kme", "peer", "fate"),
)
KEYS_BURNT: Final = Metric(
    "qumail_keys_burnt_total",
    "counter",
    "Lost keys. cause: no answer, bad reply, seen before, not remembered, overtaken, trial, relay stops",
    ("kme", "cause"),
)
KEY_BITS_USED: Final = Metric(
    "qumail_key_bits_used_total",
    "counter",
    "Bits of key that sealed mail, by level",
    ("peer", "level"),
)
PAD_DISCARDED: Final = Metric(
    "qumail_pad_bytes_discarded_total", "counter", "Bytes of keys not needed by their one-time pads", ("kme",)
)
KEYS_READY: Final = Metric("qumail_key_pool_keys", "gauge", "Keys ready for use", ("kme", "peer"))
KEYS_STORED: Final = Metric(
    "qumail_kme_stored_keys",
    "gauge",
    "Keys at the KME; absent if its last status is older than a minute",
    ("kme", "peer"),
    together="min",
)
STATUS_AGE: Final = Metric(
    "qumail_kme_status_age_seconds",
    "gauge",
    "Time since the KME's last status",
    ("kme", "peer"),
    together="min",
)
KEY_BITS: Final = Metric("qumail_kme_key_bits", "gauge", "Size of one key", ("kme", "peer"), together="max")
KEY_REFILL: Final = Metric(
    "qumail_key_refill_bits_per_second", "gauge", "Observed rate of the link", ("kme", "peer"), together="max"
)
KEY_USE: Final = Metric(
    "qumail_key_use_bits_per_second", "gauge", "Use by sealed mail over the last five minutes", ("kme", "peer")
)
KEYS_EMPTY: Final = Metric(
    "qumail_key_empty_seconds",
    "gauge",
    "Time until the keys are gone at the present rates; +Inf if they last, absent if unknown",
    ("kme", "peer"),
    together="min",
)
KEY_ALARM: Final = Metric(
    "qumail_key_alarm", "gauge", "1 if this time is below `alarm` of the KME", ("kme", "peer"), together="max"
)
KEY_WAIT: Final = Metric(
    "qumail_key_wait_seconds",
    "histogram",
    "Wait of a mail for its key. use: key, pad",
    ("kme_group", "use"),
    _WAIT_BUCKETS_S,
)
KEYS_MISSED: Final = Metric(
    "qumail_keys_missed_total",
    "counter",
    "Mails without their quantum key, then held or sealed at another level",
    ("peer", "reason"),
)
KEYS_RECEIVED: Final = Metric(
    "qumail_keys_received_total",
    "counter",
    "Keys for arriving mail requested from a KME. outcome: fetched, not_found, refused, not_stored, not_asked",
    ("kme_group", "outcome"),
)
KEYS_WITHHELD: Final = Metric(
    "qumail_keys_withheld",
    "gauge",
    "1 while no keys are drawn because the store cannot remember them",
    ("kme",),
    together="max",
)
KME_REQUESTS: Final = Metric(
    "qumail_kme_requests_total",
    "counter",
    "Requests to a KME. call: status, enc_keys, dec_keys. outcome: ok, unreachable, busy, exhausted, bad_request, "
    "misconfigured, not_found, bad_reply, not_asked, cancelled",
    ("kme", "call", "outcome"),
)
RECEIVED_KEYS_REFUSED: Final = Metric(
    "qumail_received_keys_refused_total",
    "counter",
    "Replies to dec_keys without a word about a key (a proxy, wrong paths, faults of the KME), and unanswered calls "
    "from the second in a row",
    ("kme",),
)
KME_SECONDS: Final = Metric(
    "qumail_kme_request_seconds",
    "histogram",
    "Time from a request to its whole answer",
    ("kme", "call"),
    _CALL_BUCKETS_S,
)
KME_RETRIES: Final = Metric(
    "qumail_kme_retries_total", "counter", "Second and further attempts of a request", ("kme", "call")
)
KME_BREAKER: Final = Metric(
    "qumail_kme_breaker_state", "gauge", "0 closed, 1 half-open, 2 open", ("kme",), together="max"
)
KME_CLOCK: Final = Metric(
    "qumail_kme_clock_ahead_seconds",
    "gauge",
    "Lead of the KME's clock over this host's, by the Date of its last reply",
    ("kme",),
    together="max",
)
KME_CERTIFICATES_REFUSED: Final = Metric(
    "qumail_kme_certificates_refused",
    "gauge",
    "1 while the KME rejects renewed certificate files, and the former ones are used",
    ("kme",),
    together="max",
)
KME_DROPS: Final = Metric(
    "qumail_kme_drops_undelivered_keys",
    "gauge",
    "1 if the KME was seen to drop keys before the peer had fetched them",
    ("kme",),
    together="max",
)
