"""What was sealed and marked here of late, for all workers of a relay: what comes back is not sealed again.
Standard: BLAKE2b with a key (RFC 7693), in memory that processes share (memfd_create(2)); a restart forgets it.

A message says nothing about it that a stranger could forge: only its own SHA-256 is looked for. An entry is the keyed
hash of everything that must be the same again. One that is torn, since two processes write at once, is no entry.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable

_BUCKETS, _WAYS, _TAG_OCTETS, _KEY_OCTETS = 1 << 12, 16, 16, 32
_BUCKET_OCTETS = _WAYS * _TAG_OCTETS
_KEY_AT = _BUCKETS * _BUCKET_OCTETS
_OCTETS = _KEY_AT + _KEY_OCTETS
_MARK = "mark"
"""Stands where a message has its protection."""


class SealedHere:
    """The last sealed messages: some 40,000, each counted once for each of its recipients."""

    def __init__(self) -> None:
        """At first this process has it for itself."""
        self._memory = mmap.mmap(-1, _OCTETS)
        self._key = os.urandom(_KEY_OCTETS)

    def share(self, descriptor: int) -> None:
        """From now on it is in the memory that `shared_memory` gave; the descriptor is not closed here."""
        self._memory = mmap.mmap(descriptor, _OCTETS)
        self._key = self._memory[_KEY_AT:]

    def add(self, digest: bytes, peer: str, protection: str, mailboxes: Iterable[str]) -> None:
        """The message with this `digest` was sealed for these `mailboxes` of the peer, in these layers."""
        for mailbox in mailboxes:
            at, tag = self._place(digest, peer, protection, mailbox)
            # The newest first; the oldest one drops out.
            self._memory[at : at + _BUCKET_OCTETS] = tag + self._memory[at : at + _BUCKET_OCTETS - _TAG_OCTETS]

    def add_marked(self, digest: bytes) -> None:
        """The message with this `digest` (mime.marked_digest) has its mark of protection from us."""
        self.add(digest, "", _MARK, [""])

    def has_marked(self, digest: bytes) -> bool:
        """Whether its mark is from us, as far as is still known."""
        return self.has(digest, "", _MARK, [""])

    def has(self, digest: bytes, peer: str, protection: str, mailboxes: Iterable[str]) -> bool:
        """Whether it was sealed so for all of these, as far as is still known."""
        return all(self._has(digest, peer, protection, each) for each in mailboxes)

    def _has(self, digest: bytes, peer: str, protection: str, mailbox: str) -> bool:
        at, tag = self._place(digest, peer, protection, mailbox)
        return any(
            self._memory[each : each + _TAG_OCTETS] == tag for each in range(at, at + _BUCKET_OCTETS, _TAG_OCTETS)
        )

    def _place(self, digest: bytes, peer: str, protection: str, mailbox: str) -> tuple[int, bytes]:
        text = digest + repr((peer, protection, mailbox)).encode()
        mark = hashlib.blake2b(text, digest_size=8 + _TAG_OCTETS, key=self._key).digest()
        return int.from_bytes(mark[:8]) % _BUCKETS * _BUCKET_OCTETS, mark[8:]


def shared_memory() -> int:
    """Memory in which nothing is known to be sealed, as a descriptor that workers inherit."""
    descriptor = os.memfd_create("sealed here")
    os.ftruncate(descriptor, _OCTETS)
    os.pwrite(descriptor, os.urandom(_KEY_OCTETS), _KEY_AT)
    return descriptor
