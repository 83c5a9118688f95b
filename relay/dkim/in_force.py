"""The DKIM keys that sign now, and what verifies and seals in ARC beside them; read again when their files change.
Standard: each mail asks once; keys that cannot be used leave those before in force, for what is not signed is doubted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from relay.config import Config
from relay.dkim.keys import SigningKey, load_keys
from relay.dkim.signing import Signer
from relay.dkim.verifying import Arrivals, arrivals
from relay.errors import ConfigError
from relay.files.stamps import Stamps, stamps_of

log = structlog.get_logger(__name__)


class DKIMInForce:
    """`signer` and `arrivals` give what counts at this moment, None where [dkim] wants nothing of the kind."""

    def __init__(self, settings: Callable[[], Config]) -> None:
        """Raises ConfigError where a key cannot be used."""
        self._settings = settings
        self.read_at = self.stamps()
        self._keys = load_keys(settings())
        self._signer = Signer(self._keys)
        self._arrivals = arrivals(settings(), self._keys)

    def signer(self) -> Signer | None:
        """What signs."""
        return self._signer if self._keys else None

    def arrivals(self) -> Arrivals | None:
        """What verifies."""
        return self._arrivals

    def stamps(self) -> Stamps:
        """What differs once a key has changed."""
        dkim = self._settings().dkim
        return stamps_of(key.key for key in dkim.keys) if dkim is not None else {}

    def reload(self) -> None:
        """Takes the keys as they are now."""
        self.read_at, settings = self.stamps(), self._settings()
        try:
            keys = load_keys(settings)
            found = arrivals(settings, keys)
        except ConfigError as error:
            log.error("dkim_keys_not_reloaded", problems=error.problems)
            return
        if list(map(_told_by, keys)) == list(map(_told_by, self._keys)):
            return
        if found is not None and self._arrivals is not None:
            found = replace(self._arrivals, sealer=found.sealer)  # with the DNS records that are known already
        self._keys, self._signer, self._arrivals = keys, Signer(keys), found
        log.info("dkim_keys_reloaded", keys=[key.name for key in keys])


def _told_by(key: SigningKey) -> tuple[str, bytes]:
    return key.name, key.public
