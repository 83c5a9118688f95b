"""The current DKIM signer and verifier; keys are reloaded when key files change.
Each mail asks once; unusable keys leave the previous ones in force, since unsigned mail is distrusted.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from relay.config import Config
from relay.dkim.keys import SigningKey, load_keys
from relay.dkim.signing import Signer
from relay.dkim.verifying import Arrivals, arrivals
from relay.errors import ConfigError
from relay.files.stamps import Stamps, stamps_of

log = structlog.get_logger(__name__)


class DKIMInForce:
    """`signer` and `arrivals` are the current ones, None if [dkim] does not configure them."""

    def __init__(self, settings: Callable[[], Config]) -> None:
        """Raises ConfigError if a key is unusable."""
        self._settings = settings
        self.read_at = self.stamps()
        self._keys = load_keys(settings())
        self._signer = Signer(self._keys)
        self._arrivals = arrivals(settings())

    def signer(self) -> Signer | None:
        """The current signer."""
        return self._signer if self._keys else None

    def arrivals(self) -> Arrivals | None:
        """The current verifier."""
        return self._arrivals

    def stamps(self) -> Stamps:
        """The stamps of the key files."""
        dkim = self._settings().dkim
        return stamps_of(key.key for key in dkim.keys) if dkim is not None else {}

    def reload(self) -> None:
        """Reloads the keys."""
        self.read_at, settings = self.stamps(), self._settings()
        try:
            keys = load_keys(settings)
        except ConfigError as error:
            log.error("dkim_keys_not_reloaded", problems=error.problems)
            return
        if list(map(_identity, keys)) == list(map(_identity, self._keys)):
            return
        self._keys, self._signer = keys, Signer(keys)
        log.info("dkim_keys_reloaded", keys=[key.name for key in keys])


def _identity(key: SigningKey) -> tuple[str, bytes]:
    return key.name, key.public
