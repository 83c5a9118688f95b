"""Findings of `qumail-relay check` on S/MIME: this site's own certificates, and those of others that are of no use.
Changes nothing; warns 30 days before the end, as for all certificates (relay/identity/findings.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from relay.config import Config, SMIMESettings
from relay.errors import ConfigError
from relay.identity.certificates import valid_now
from relay.identity.findings import WARN_DAYS
from relay.smime.directory import CertificateDirectory
from relay.smime.opening import trusted
from relay.smime.own import load_own, signing_key, why_none_signs
from relay.smime.usable import is_for_signatures_alone

Finding = tuple[str, str, tuple[str, ...]]
"""The title, what was looked at, and its problems."""
MAX_NAMED = 10
"""Maximum number of certificates of others whose problems are named."""


def smime_findings(config: Config, now: datetime) -> Iterator[Finding]:
    """What is wrong with [smime] at this aware time; nothing without the table. Raises nothing."""
    if config.smime is None:
        return
    try:
        keys = load_own(config.smime.keys)
    except ConfigError as error:
        yield "S/MIME", "", tuple(error.problems)
    else:
        named = ", ".join(each.certificate.subject.rfc4514_string() for each in keys)
        problems = [] if signing_key(keys, now) is not None else [why_none_signs(keys, now)]
        soon = now + timedelta(days=max(WARN_DAYS))
        if not problems and signing_key(keys, soon) is None:
            problems.append(f"no certificate of [smime] may sign in {max(WARN_DAYS)} days: renew it")
        yield "S/MIME", named, tuple(problems)
    if config.smime.anchors or config.smime.crls:
        yield "CAs of S/MIME", ", ".join(map(str, config.smime.anchors)), tuple(_of_trust(config.smime, now))
    directory = CertificateDirectory(config.certificates_directory)
    try:
        names, useless = 0, []
        for name in directory.names():
            names += 1
            found = directory.named(name)
            only_sign = found.certificates and all(map(is_for_signatures_alone, found.certificates))
            if found.to_seal(now) is None and not only_sign:
                useless.append(found.why_not(now))
    except OSError as error:
        yield "certificates of others", str(directory.path), (f"{error.filename}: {error.strerror}",)
        return
    more = (f"and {len(useless) - MAX_NAMED} more",) if len(useless) > MAX_NAMED else ()
    yield (
        "certificates of others",
        f"{directory.path}: for {names} addresses and domains",
        (*useless[:MAX_NAMED], *more),
    )


def _of_trust(settings: SMIMESettings, now: datetime) -> Iterator[str]:
    """What is wrong with the CAs and their CRLs."""
    try:
        trust = trusted(settings, lambda _: ())
    except ConfigError as error:
        yield from error.problems
        return
    for each in trust.anchors:
        if not valid_now(each, now):
            yield f"{each.subject.rfc4514_string()}: this CA's certificate is not valid now"
    for crl in (each.crl for each in trust.crls):
        if crl.next_update_utc is None or now > crl.next_update_utc:
            yield f"{crl.issuer.rfc4514_string()}: its CRL is not current, and no signature under this CA is good"
