"""The key encapsulation mechanisms of level pqc as policies list them: ML-KEM-1024, and further ones around it.
Standard: policies/README.md; names are in relay/formats/cms/recipients.py; a trigger in a message only adds to them.
"""

from __future__ import annotations

import difflib

from relay.formats.cms import FURTHER_KEMS, ML_KEM_1024

KEMNames = tuple[str, ...]
"""ML-KEM-1024 first, then the further ones in the order of their layers, from the inside out."""

DEFAULT_KEMS: KEMNames = (ML_KEM_1024,)
_NAMES = (ML_KEM_1024, *FURTHER_KEMS)


def parse_kems(value: object) -> KEMNames:
    """`["ml-kem-1024", "hqc-256"]`, or one name alone; raises ValueError saying what is wrong and how to write it."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise ValueError('write a list of KEMs, for instance ["ml-kem-1024", "hqc-256"]')
    kems = tuple(_parse(name) for name in names)
    if len(set(kems)) != len(kems):
        raise ValueError("a KEM is listed twice; leave one out")
    if ML_KEM_1024 not in kems:
        raise ValueError(f"{ML_KEM_1024!r} is missing; further KEMs go around it, never in its place")
    return with_kems(DEFAULT_KEMS, kems)


def with_kems(kems: KEMNames, more: KEMNames) -> KEMNames:
    """The KEMs and those of `more` that are not among them."""
    return (*kems, *(kem for kem in more if kem not in kems))


def _parse(name: object) -> str:
    if isinstance(name, str) and name.lower() in _NAMES:
        return name.lower()
    close = difflib.get_close_matches(name.lower(), _NAMES, n=1) if isinstance(name, str) else ()
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_NAMES)}"
    raise ValueError(f"{name!r} is not a KEM that is known here; {hint}")
