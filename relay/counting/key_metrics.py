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
    "Fresh keys by fate: issued = used + burnt + expired + in the pool, but for what a killed process had. fate: these",
    ("kme", "peer", "fate"),
)
KEYS_BURNT: Final = Metric(
    "qumail_keys_burnt_total",
    "counter",
    "Keys that were lost. cause: no answer, bad reply, seen before, not remembered, overtaken, trial, relay stops",
    ("kme", "cause"),
)
KEY_BITS_USED: Final = Metric(
    "qumail_key_bits_used_total",
    "counter",
    "Bits of key that sealed mail, by the level that took them",
    ("peer", "level"),
)
PAD_DISCARDED: Final = Metric(
    "qumail_pad_bytes_discarded_total", "counter", "Bytes of keys that one-time pads had no use for", ("kme",)
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
    "Times that a quantum key for a mail was missing, so that it was held, or went under another level that its "
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
    "misconfigured, not_found, bad_reply, not_asked, cancelled",
    ("kme", "call", "outcome"),
)
RECEIVED_KEYS_REFUSED: Final = Metric(
    "qumail_received_keys_refused_total",
    "counter",
    "Replies to dec_keys without a word about a key: of a proxy, to wrong paths or methods, faults of the KME. Calls "
    "that are not answered count too, from the second in a row",
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
    "qumail_kme_retries_total", "counter", "Second and further attempts of a request", ("kme", "call")
)
KME_BREAKER: Final = Metric(
    "qumail_kme_breaker_state", "gauge", "0 closed, 1 half-open, 2 open", ("kme",), together="max"
)
KME_CLOCK: Final = Metric(
    "qumail_kme_clock_ahead_seconds",
    "gauge",
    "How far the KME's clock is ahead of this host's, by the Date of its last reply; none where it has none",
    ("kme",),
    together="max",
)
KME_CERTIFICATES_REFUSED: Final = Metric(
    "qumail_kme_certificates_refused",
    "gauge",
    "1 while the KME does not take renewed certificate files, so that those before are used",
    ("kme",),
    together="max",
)
KME_DROPS: Final = Metric(
    "qumail_kme_drops_undelivered_keys",
    "gauge",
    "1 where the KME was seen to drop keys that the peer had not fetched",
    ("kme",),
    together="max",
)
