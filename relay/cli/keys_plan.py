"""`qumail-relay keys plan`: the quantum keys that a day's mail needs, and the key rate of the link.
Uses the code that draws keys (relay/journey/planner.py, relay/keys/pads.py), without drawing any.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from relay.canary.message import NONCE_OCTETS, CanaryNote, canary_address, write
from relay.cli.as_relay import become_the_relays_user, load
from relay.cli.logs import configure_logging
from relay.cli.options import config_option
from relay.cli.output import json_option, print_json
from relay.config import Config, KMESettings, LogSettings, PeerSettings, SiteSettings, parse_size
from relay.config.tables import PolicySettings, StoreSettings
from relay.counting.amounts import octets
from relay.errors import ConfigError
from relay.identity import with_documents
from relay.journey.plan import Copy
from relay.journey.planner import Planner
from relay.keys.build import key_ring, peer_keys, prefetch_of
from relay.keys.pads import TAG_OCTETS, PadPlan, plan_keys
from relay.keys.replies import USUAL_KEY_BITS, KeyStatus
from relay.keys.rotation import KeysInUse, Rotation
from relay.keys.types import Key, KeyReference, SealingKey
from relay.levels import BETWEEN_RELAYS, BY_NAME, PADS, SINGLE_KEYS
from relay.mail import Recipient
from relay.schemes.all import all_schemes

DAY_S = 86_400.0
ASSUMED = "what is assumed of a KME; with its relay.toml it is asked"
BUSY_HOURS = 8
"""Hours in which a typical office sends all mail of a day."""
SENDER, RECIPIENT = "first.lastname", "first.lastname"
"""Local parts of typical length: both addresses are sealed with the mail, and a pad uses key for them."""


class SizeOption(click.ParamType[int]):
    """A size, as in relay.toml."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size in bytes."""
        try:
            return parse_size(int(value) if isinstance(value, str) and value.isdecimal() else value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@config_option
@click.option(
    "--mails",
    type=click.IntRange(1, 10**9),
    required=True,
    help="Mails a day; one to several people at the peer is one.",
)
@click.option("--size", type=SizeOption(), required=True, help="The size of one with its attachments, as 75K or 2M.")
@click.option("--level", type=click.Choice(BETWEEN_RELAYS), required=True, help="The level.")
@click.option("--peer", "peer_name", help="The peer. [default: the first of relay.toml]")
@click.option(
    "--key-size",
    type=click.IntRange(8),
    help="The longest key that the KME gives, in bits. [default: as the KME says, else 256]",
)
@click.option(
    "--stock", type=click.IntRange(0), help="Keys of the usual size that the KME has in store. [default: as it says]"
)
@json_option()
def plan(
    config_file: Path,
    mails: int,
    size: int,
    level: str,
    peer_name: str | None,
    key_size: int | None,
    stock: int | None,
    as_json: bool,
) -> None:
    """Say how many keys a number of mails a day takes at a level, and what rate and stock of keys that needs.

    It works without a relay.toml too. With one, its settings and what its KME says of itself count; no key is taken.
    """
    configure_logging(LogSettings(level="error"))
    if config_file.exists():
        become_the_relays_user(config_file)
    config = with_documents(load(config_file))[0] if config_file.exists() else _example()
    name = peer_name or next(iter(config.peers), None)
    if name is None or name not in config.peers:
        raise ConfigError(f"{name}: no such peer" if name else "there is no peer yet: nothing is sealed for anybody")
    layers = tuple(level.split("+"))
    source = (
        asyncio.run(_source(config, name, BY_NAME[layers[-1]].use or SINGLE_KEYS)) if config_file.exists() else None
    )
    chosen = source or Source("", None, _example().kmes["kme"])
    if key_size is not None or stock is not None:
        chosen = replace(chosen, status=_with(chosen.status, key_size, stock))
    copy = Copy(name, layers)
    demand = with_canaries(planned(config, copy, chosen, mails, size), config, copy, chosen)
    if as_json:
        print_json(asdict(demand))
    else:
        click.echo("\n".join(_lines(demand)))


@dataclass(frozen=True, slots=True)
class Source:
    """The KME that supplies the keys: name, status and settings."""

    name: str
    status: KeyStatus | None
    settings: KMESettings
    any_size: bool = True


@dataclass(frozen=True, slots=True)
class KeyDemand:
    """The demand of a day: `keys_per_mail` of `key_bits` each for every `mails_per_key` mails.

    `hidden` is the number of bytes under one pad. At most `idle_keys` a day are drawn and expire. The stock lasts for
    `stock_mails`, None if unknown. `canary_keys` a day are for canaries at the same level: our questions, and our
    receipts if the peer asks as often.
    """

    kme: str
    mails: int
    size: int
    protection: str
    hidden: int
    keys_per_mail: int
    key_bits: int
    mails_per_key: int
    keys: int
    bits: int
    bits_per_s: float
    idle_keys: int
    stock_keys: int | None
    stock_mails: int | None
    canary_keys: int = 0


def planned(config: Config, copy: Copy, source: Source, mails: int, size: int) -> KeyDemand:
    """The demand of `mails` a day of `size` bytes each, as copies like this one. Raises KeyUnavailable."""
    peer = config.peers[copy.peer or ""]
    sender, recipient = f"{SENDER}@{config.site.domains[0]}", Recipient(f"{RECIPIENT}@{peer.domains[0]}")
    hidden = Planner(config, all_schemes(config)).hidden(copy, sender, [recipient], size)
    drawn = plan_keys(hidden, source.status, any_size=source.any_size) if copy.takes_key else PadPlan(0, USUAL_KEY_BITS)
    per_key = 1 if hidden or not drawn.number else mails_per_key(peer_keys(peer).rotation, mails, size)
    keys = drawn.number * -(-mails // per_key)
    stored = source.status.stored_bits if source.status else None
    return KeyDemand(
        kme=source.name,
        mails=mails,
        size=size,
        protection=copy.protection,
        hidden=hidden,
        keys_per_mail=drawn.number,
        key_bits=drawn.size,
        mails_per_key=per_key,
        keys=keys,
        bits=keys * drawn.size,
        bits_per_s=keys * drawn.size / DAY_S,
        idle_keys=_idle(source.settings),
        stock_keys=source.status.stored_key_count if source.status else None,
        stock_mails=stored * per_key // (8 * drawn.cost) if stored is not None and drawn.number else None,
    )


def with_canaries(demand: KeyDemand, config: Config, copy: Copy, source: Source) -> KeyDemand:
    """Adds the demand of [canary]. Raises KeyUnavailable."""
    if config.canary.every is None:
        return demand
    ours, theirs = canary_address(config.site.domains), canary_address(config.peers[copy.peer or ""].domains)
    size = len(write(CanaryNote("question", bytes(NONCE_OCTETS)), ours, theirs, config.site.hostname))
    each = planned(config, copy, source, 1, size)
    return replace(demand, canary_keys=each.keys * round(2 * DAY_S / config.canary.every))


def mails_per_key(rotation: Rotation, mails: int, size: int) -> int:
    """The number of mails, spread evenly over a day, that one key wraps at level aes; runs the key ring's rule."""
    now = 0.0
    in_use = KeysInUse(lambda: now)
    in_use.begin("", rotation, size, SealingKey(Key("", b""), KeyReference("", "", "", "")))
    number = 1
    while number < mails:
        now += DAY_S / mails
        if in_use.reuse("", rotation, size) is None:
            break
        number += 1
    return number


def _idle(kme: KMESettings) -> int:
    """Keys a day that are kept ready and expire without mail."""
    rule = prefetch_of(kme)
    low = 0 if kme.use == PADS else rule.low
    return round(low * DAY_S / rule.lifetime)


async def _source(config: Config, peer_name: str, use: str) -> Source | None:
    """The peer's first KME for this use that answers; else the first of all."""
    peer = config.peers[peer_name]
    first: Source | None = None
    async with key_ring(config, prefetch=False) as ring:
        for group in peer.kme_groups:
            for member in ring.groups[group].members if group in ring.groups and config.serves(group, use) else ():
                name, settings = member.client.name, config.kmes[member.client.name]
                status = await member.pool.store(peer.sae_id).limits()
                source = Source(name, status, settings, member.client.any_size)
                if status is not None:
                    return source
                first = first or replace(source, name=f"{name}, which does not answer")
    return first


def _with(status: KeyStatus | None, key_size: int | None, stock: int | None) -> KeyStatus:
    """The status, with the values of the command line."""
    status = status or KeyStatus("", "", "", "", USUAL_KEY_BITS, None, None, None, None, None, None)
    return replace(
        status,
        max_key_size=key_size or status.max_key_size,
        stored_key_count=status.stored_key_count if stock is None else stock,
    )


def _example() -> Config:
    """Two sites with default settings, if there is no relay.toml yet."""
    return Config.model_validate(
        {
            "site": SiteSettings.examples,
            "policies": PolicySettings.examples,
            "store": StoreSettings.examples,
            "kmes": {"kme": KMESettings.examples},
            "peers": {"bob": PeerSettings.examples},
        }
    )


def _lines(demand: KeyDemand) -> list[str]:
    if not demand.keys:
        return [f"level {demand.protection} without a quantum key takes none"]
    busy = demand.bits_per_s * 24 / BUSY_HOURS
    lines = [f"a mail      {octets(demand.size)}, {demand.protection}: {_number(demand)}"]
    if demand.hidden:
        lines.append(f"            a pad that hides {octets(demand.hidden)}; {TAG_OCTETS} B of each key authenticate")
    lines += [
        f"a day       {demand.mails:,} mails: {demand.keys:,} keys, {_bits(demand.bits)}",
        f"the link    {_rate(demand.bits_per_s)} all day long, {_rate(busy)} where all comes in {BUSY_HOURS} hours",
        f"            each kbit/s carries {1000 * demand.mails / demand.bits_per_s:,.0f} mails a day",
        f"kept ready  {demand.idle_keys:,} keys a day at most, which expire where no mail comes",
    ]
    if demand.canary_keys:
        lines.append(f"canaries    {demand.canary_keys:,} keys a day more, half of them where the peer asks as often")
    if demand.stock_keys is not None and demand.stock_mails is not None:
        days = demand.stock_mails / demand.mails
        lasts = f"{days:,.1f} days" if days >= 2 else f"{24 * days:,.1f} hours"
        lines.append(f"the stock   {demand.stock_keys:,} keys: {demand.stock_mails:,} mails, or {lasts} of such days")
    return [*lines, f"by          {f'KME {demand.kme}' if demand.kme else ASSUMED}"]


def _number(demand: KeyDemand) -> str:
    keys = f"{demand.keys_per_mail:,} key{'s' if demand.keys_per_mail > 1 else ''} of {demand.key_bits:,} bits"
    return keys if demand.mails_per_key == 1 else f"{keys} for {demand.mails_per_key:,} mails"


def _rate(bits_per_s: float) -> str:
    """Formats a rate as `keys status` does."""
    return f"{bits_per_s / 1000:,.2f} kbit/s"


def _bits(bits: float) -> str:
    for unit, length in (("Gbit", 10**9), ("Mbit", 10**6), ("kbit", 10**3)):
        if bits >= length:
            return f"{bits / length:,.2f} {unit}"
    return f"{bits:,.1f} bit"
