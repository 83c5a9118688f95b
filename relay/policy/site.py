"""Facts about the site for policies: its own domains, tag separators, limit for bounces, and whether logins are known.
Standard: policies/README.md; the values are from relay.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from relay.config import DEFAULT_TAG_SEPARATORS, MAX_BOUNCE, Config
from relay.formats.mailbox import fold_domain


class SiteFacts(NamedTuple):
    """`domains` are `site.domains` in A-labels: mail to them stays inside.

    Any character of `tag_separators` separates a local part from its tag. `max_bounce` is the largest message from the
    null sender, in bytes, that gets a one-time pad. `logins_known` says whether each listener for outgoing mail is told
    who has logged in. `takes_from` has for each peer the other domains whose senders it takes from us, "*" for any;
    None if that is not known.
    """

    domains: frozenset[str] = frozenset()
    tag_separators: str = DEFAULT_TAG_SEPARATORS
    max_bounce: int = MAX_BOUNCE
    logins_known: bool = True
    takes_from: Mapping[str, frozenset[str]] | None = None

    @classmethod
    def of(cls, config: Config) -> SiteFacts:
        """The facts in a configuration."""
        domains = frozenset(map(fold_domain, config.site.domains))
        outgoing = config.outgoing
        logins_known = outgoing is None or (outgoing.lmtp is None and outgoing.listen is None)
        takes_from = {name: frozenset(peer.takes_from) for name, peer in config.peers.items()}
        return cls(domains, config.policies.tag_separators, config.max_bounce, logins_known, takes_from)


ANY_SITE = SiteFacts()
"""A site without any configuration."""
