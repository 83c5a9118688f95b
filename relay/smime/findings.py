"""Findings of `qumail-relay check` on S/MIME, and when what is in use ends, for the alarms.
Standard: RFC 5280 (validity, CRLs). Changes nothing; warns 30 days before the end, as relay/identity/findings.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from cryptography import x509

from relay.config import Config, SMIMESettings
from relay.errors import ConfigError
from relay.identity.certificates import valid_now
from relay.identity.findings import WARN_DAYS
from relay.smime.directory import CertificateDirectory, Found
from relay.smime.opening import SMIMEOpener, trusted
from relay.smime.own import load_own, signing_key, why_none_signs
from relay.smime.usable import is_for_signatures_alone, unusable_for_signing

Finding = tuple[str, str, tuple[str, ...]]
"""The title, what was looked at, and its problems."""
MAX_NAMED = 10
"""Maximum number of certificates of others whose problems are named."""
SOON = timedelta(days=max(WARN_DAYS))
_CRL_DUE = 4
"""A CRL is due to be replaced in the last quarter of its time: many are valid for a week."""


def ends_in_use(opener: SMIMEOpener, directory: CertificateDirectory, now: datetime) -> dict[str, datetime]:
    """When what is in use ends: the key that signs, a CA or CRL that is next, and, by domain, what is sealed to.

    Of others only what ends within 30 days; many sites have thousands. Blocks.
    """
    ends: dict[str, datetime] = {}
    keys = opener.keys()
    own = [each.certificate for each in keys if not each.mailboxes]
    if signs := [each.not_valid_after_utc for each in own if not unusable_for_signing(each, each.not_valid_before_utc)]:
        ends["site"] = max(signs)
    trust = opener.trusted()
    if anchors := [each.not_valid_after_utc for each in trust.anchors]:
        ends["CA"] = min((each for each in anchors if each > now), default=max(anchors))
    if due := [end for each in trust.crls if (end := _due(each.crl, now)) is not None]:
        ends["CRL"] = min(due)
    others = sorted((end, each.name.rpartition("@")[2]) for each in directory.in_use() if (end := _ends(each, now)))
    for end, domain in others[:MAX_NAMED]:
        ends.setdefault(domain, end)
    return ends


def _due(crl: x509.CertificateRevocationList, now: datetime) -> datetime | None:
    """The end of a CRL that should have been replaced; None for a current one."""
    end = crl.next_update_utc or crl.last_update_utc
    return end if end - now <= (end - crl.last_update_utc) / _CRL_DUE else None


def _ends(found: Found, now: datetime) -> datetime | None:
    """When the last certificate for somebody ends, if that is soon, or was."""
    end = max((each.not_valid_after_utc for each in found.certificates), default=now + SOON)
    return end if end < now + SOON else None


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
        if not problems and signing_key(keys, now + SOON) is None:
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
            elif (end := _ends(found, now)) is not None:
                useless.append(f"the last certificate of {name} ends on {end:%Y-%m-%d}: ask for the next")
        offered = sum(1 for _ in CertificateDirectory(config.offered_certificates_directory).names())
    except OSError as error:
        yield "certificates of others", str(directory.path), (f"{error.filename}: {error.strerror}",)
        return
    more = (f"and {len(useless) - MAX_NAMED} more",) if len(useless) > MAX_NAMED else ()
    yield (
        "certificates of others",
        f"{directory.path}: for {names} addresses and domains"
        + (f"; {offered} have offered theirs: `qumail-relay certificates list --offered`" if offered else ""),
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
        subject, end = each.subject.rfc4514_string(), each.not_valid_after_utc
        if not valid_now(each, now):
            yield f"{subject}: this CA's certificate is not valid now"
        elif end < now + SOON:
            yield f"{subject}: this CA's certificate ends on {end:%Y-%m-%d}"
    for one in trust.crls:
        issuer, due = one.crl.issuer.rfc4514_string(), _due(one.crl, now)
        if not one.complete:
            yield f"{issuer}: this CRL is only a part (a critical extension), and makes no signature good"
        elif due is not None and due < now:
            yield f"{issuer}: its CRL is not current, and no signature under this CA is good"
        elif due is not None:
            yield f"{issuer}: its CRL ends on {due:%Y-%m-%d %H:%M UTC}: fetch the next"
