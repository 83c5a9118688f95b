"""`qumail-relay seal` and `open`: a message file in, the sealed or opened message on standard output.
Policies and code are those for mail in flight; a file with LF line ends is read as CRLF.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import BinaryIO

import click

from relay import key_receiver
from relay.cli.as_relay import load, person
from relay.cli.logs import configure_logging
from relay.cli.options import InputFile, as_relay_option
from relay.config import Config, LogSettings
from relay.errors import ConfigError, MessageTooBig, PolicyHolds, UnknownPeer
from relay.formats import mime
from relay.mail import Envelope, Mail, Recipient
from relay.outcome.trail import record_opened
from relay.process import assembly
from relay.runtime.stopping import stop_on_signals

_QUIET = LogSettings(level="warning")


@click.command("seal")
@as_relay_option
@click.option("--from", "sender", required=True, help="Envelope sender, as policy sees it.")
@click.option("--to", "recipient", required=True, help="Envelope recipient: decides level and peer.")
@click.argument("file", type=InputFile())
def seal_file(config_file: Path, sender: str, recipient: str, file: BinaryIO) -> None:
    """Seal the message in FILE (- for standard input) as policy says for --to; a key is spent.

    Where policy says plaintext, this is an error: nothing unsealed ever comes out of `seal`.
    """
    configure_logging(_QUIET)
    config = load(config_file)
    message = _message(file, config)
    mail = Mail(Envelope(sender, (Recipient(recipient),)), message)
    _give(asyncio.run(_seal(config, mail)))


@click.command("open")
@as_relay_option
@click.option(
    "--keys", "only_keys", is_flag=True, help="Give its quantum keys instead: key_ID and key, both in hexadecimal."
)
@click.argument("file", type=InputFile())
def open_file(config_file: Path, file: BinaryIO, *, only_keys: bool) -> None:
    """Open the sealed message in FILE (- for standard input): the original comes out, byte for byte.

    The key is fetched from the KME (which gives it once) and kept in the store, so opening can be repeated. Each time
    there is a record of it, and of who did it, before the original comes out. With --keys OpenSSL can open it later.
    """
    configure_logging(_QUIET)
    config = load(config_file)
    _give(asyncio.run(_open(config, _message(file, config), key_receiver.start(config), only_keys=only_keys)))


async def _seal(config: Config, mail: Mail) -> bytes:
    with stop_on_signals() as stop:
        async with assembly.parts(config, prefetch=False) as parts:
            sealed = await stop.or_end(parts.sealer.seal(mail))
    for failure in sealed.failures.values():
        raise failure
    [copy] = sealed.copies
    if copy.in_clear:
        raise PolicyHolds(f"{copy.policy}: policy says plaintext for this recipient; there is nothing to seal")
    return copy.message


async def _open(config: Config, message: bytes, receiver: socket.socket, *, only_keys: bool) -> bytes:
    with stop_on_signals() as stop:
        async with assembly.parts(config, prefetch=False, key_receiver=receiver) as parts:
            return await stop.or_end(_opened(parts, message, only_keys=only_keys))


async def _opened(parts: assembly.Parts, message: bytes, *, only_keys: bool) -> bytes:
    """The original, or its quantum keys, one a line."""
    opened = await parts.originals.opener.open(message)
    if opened is None:
        raise UnknownPeer("this message is not sealed for this site")
    # On the disk first: nobody would know of a decryption without a record.
    keys = await parts.keys.fetch(opened.keys) if only_keys else {}
    if only_keys and not keys:
        raise ConfigError(f"level {opened.protection} has no quantum key")
    await record_opened(parts.audit, opened, message, person(), keys_out=only_keys)
    lines = [f"{each.key_ID.encode().hex()} {keys[each].key.hex()}\n" for each in opened.keys if each in keys]
    return "".join(lines).encode() if only_keys else opened.original


def _give(message: bytes) -> None:
    """Writes the whole message to standard output at once: Python's final flush could fail without an exit status."""
    left = memoryview(message)
    try:
        while left:
            left = left[os.write(sys.stdout.fileno(), left) :]
    except OSError as error:
        raise ConfigError(f"standard output cannot be written: {error.strerror}") from error


def _message(file: BinaryIO, config: Config) -> bytes:
    """The message in the file. Raises MessageTooBig."""
    ways = [each for each in (config.outgoing, config.incoming, *config.imap.values()) if each is not None]
    limit = max(each.max_message_size for each in ways)
    message = file.read(2 * limit + 1)
    if len(message) > 2 * limit:
        raise MessageTooBig(f"{file.name}: more than {2 * limit} bytes")
    return mime.as_sent(message)
