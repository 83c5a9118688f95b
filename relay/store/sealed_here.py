"""What was sealed here of late, for all workers of a relay and after its restart: what comes back is not sealed again.
Standard: BLAKE2b with a key (RFC 7693) out of the site secret, in a file that processes share (mmap(2), MAP_SHARED).

A message says nothing about it that a stranger could forge: only its own SHA-256 is looked for. An entry is the keyed
hash of everything that must be the same again. One that is torn, since two processes write at once, is no entry.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from relay.store.record_files import needing_room
from relay.store.secret_file import open_regular

SEALED_HERE = "sealed.recent"
"""Name of the file beside the store."""
_BUCKETS, _WAYS, _TAG_OCTETS = 1 << 12, 16, 16
_BUCKET_OCTETS = _WAYS * _TAG_OCTETS
_OCTETS = _BUCKETS * _BUCKET_OCTETS


class SealedHere:
    """The last sealed messages: some 40,000, each counted once for each of its recipients."""

    def __init__(self, key: bytes | None = None, path: Path | None = None) -> None:
        """`key` has at most 64 bytes. Without `path` only this process knows. Raises StoreUnavailable."""
        self._key = os.urandom(32) if key is None else key
        self._memory = mmap.mmap(-1, _OCTETS) if path is None else _shared(path)

    def add(self, digest: bytes, peer: str, protection: str, mailboxes: Iterable[str]) -> None:
        """The message with this `digest` was sealed for these `mailboxes` of the peer, in these layers."""
        for mailbox in mailboxes:
            at, tag = self._place(digest, peer, protection, mailbox)
            # The newest first; the oldest one drops out.
            self._memory[at : at + _BUCKET_OCTETS] = tag + self._memory[at : at + _BUCKET_OCTETS - _TAG_OCTETS]

    def has(self, digest: bytes, peer: str, protection: str, mailboxes: Iterable[str]) -> bool:
        """Whether it was sealed so for all of these, as far as is still known."""
        return all(self._has(digest, peer, protection, each) for each in mailboxes)

    def _has(self, digest: bytes, peer: str, protection: str, mailbox: str) -> bool:
        at, tag = self._place(digest, peer, protection, mailbox)
        return any(
            self._memory[each : each + _TAG_OCTETS] == tag for each in range(at, at + _BUCKET_OCTETS, _TAG_OCTETS)
        )

    def _place(self, digest: bytes, peer: str, protection: str, mailbox: str) -> tuple[int, bytes]:
        what = digest + repr((peer, protection, mailbox)).encode()
        mark = hashlib.blake2b(what, digest_size=8 + _TAG_OCTETS, key=self._key).digest()
        return int.from_bytes(mark[:8]) % _BUCKETS * _BUCKET_OCTETS, mark[8:]


def _shared(path: Path) -> mmap.mmap:
    with needing_room(path.parent, _OCTETS):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            os.posix_fallocate(file, 0, _OCTETS)  # without room a write would end the process
            return mmap.mmap(file, _OCTETS)
        finally:
            os.close(file)
