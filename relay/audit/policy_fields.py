"""The fields of a record about a set of policies: installer, files, and which policies are weaker or stronger.
Standard: deploy/AUDIT.md; addresses are hashed as everywhere in the record, including those in file names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from relay.audit.entries import AddressHash
from relay.files.accounts import user_name
from relay.policy.installing import Installer
from relay.policy.names import SUFFIX
from relay.policy.step import SetStep

if TYPE_CHECKING:
    from relay.policy.compare import Comparison, Difference

MAX_DIFFERENCES = 20
"""Maximum number of differences listed for each of weaker, stronger and others."""
MAX_SAID = 500
"""Maximum length of the text of one difference, in characters."""
_PERSONS_FILE = re.compile(r"(?<![\w./-])[\w-]+(?:\.[\w-]+)*/[^\s/:'\"]+\.toml")
_MEANING = {
    "down": "weakened", "let go": "weakened", "up": "raised", "stopped": "otherwise", "other": "otherwise",
}  # fmt: skip


def file_name(name: str, addresses: AddressHash) -> str:
    """The recorded name of a policy file: a person's file name contains an address."""
    person = person_of(name)
    return f"{name.partition('/')[0]}/{addresses.write(person)}{SUFFIX}" if person and addresses.hides else name


def person_of(name: str) -> str:
    """The address that a person's file is for; "" for a domain's."""
    domain, person, stem = name.removesuffix(SUFFIX).partition("/")
    return f"{unquote(stem)}@{domain}" if person else ""


def of_step(step: SetStep, addresses: AddressHash) -> dict[str, Any]:
    """The fields for version, previous version, installer and files."""
    fields: dict[str, Any] = {"version": step.version, "before": step.before, "files": step.files, "way": step.way}
    fields |= _who(step.who)
    for kind in ("added", "changed", "removed"):
        names = getattr(step, kind)
        fields[kind] = [file_name(name, addresses) for name in names.first]
        if names.more:
            fields[f"{kind}_more"] = names.more
    return fields


def _who(installer: Installer) -> dict[str, Any]:
    by = ", ".join(map(user_name, installer.uids))
    sudo = {"sudo_user": installer.sudo_user} if installer.sudo_user else {}
    return {"by": by, "uid": list(installer.uids), **sudo, "known_by": installer.known_by}


def of_comparison(compared: Comparison | None, missing: str, addresses: AddressHash) -> dict[str, Any]:
    """The fields for weaker, stronger and other differences; `missing` says why nothing was compared."""
    if compared is None:
        return {"compared": f"no: {missing}", "weaker": None}
    differences: dict[str, list[str]] = {"weakened": [], "raised": [], "otherwise": []}
    for each in compared.differences:
        differences[_MEANING[each.direction]].append(_said(each, addresses))
    part = f"{compared.done} of {compared.kinds} kinds of recipients"
    fields: dict[str, Any] = {"compared": "all" if compared.whole else part}
    fields["weaker"] = compared.weaker or (False if compared.proven else None)
    for kind, texts in differences.items():
        fields[kind] = texts[:MAX_DIFFERENCES]
        if len(texts) > MAX_DIFFERENCES:
            fields[f"{kind}_more"] = len(texts) - MAX_DIFFERENCES
    return fields


def _said(each: Difference, addresses: AddressHash) -> str:
    said = (
        f"{each.direction}: mail from {each.senders} to {each.recipients} ({each.message}): {'; '.join(each.changed)}"
    )
    return _hidden(said, addresses)


def _hidden(said: str, addresses: AddressHash) -> str:
    """The text with addresses in recorded form, including those in names of people's files."""
    if addresses.hides:
        said = _PERSONS_FILE.sub(lambda match: file_name(match[0], addresses), addresses.hide_in(said))
    return said[:MAX_SAID]
