"""`qumail-relay serve`: runs the relay until a signal stops it.
SIGTERM and SIGINT stop it after the mails in flight, SIGHUP reloads all that needs no restart.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import click
import structlog
import uvloop

from relay import key_receiver
from relay.cli.as_relay import load_to_serve, refuse_others_settings, refuse_root
from relay.cli.logs import configure_logging
from relay.cli.options import config_option
from relay.config import Config, TCPAddress, load_config
from relay.errors import ConfigError
from relay.files import toml, write_whole
from relay.process import app, child, workers
from relay.process.reloading import Settings
from relay.process.worker import Worker
from relay.runtime import signals
from relay.runtime.heap import use_one_heap
from relay.runtime.passed import passed_descriptors
from relay.runtime.prctl import name_process


@click.command()
@config_option
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    help="Written once all entries listen: a line `name host:port` for each (useful with port 0).",
)
@click.option(
    "--check", "only_check", is_flag=True, help="Read relay.toml, say what is wrong there, and serve nothing."
)
@click.option("--worker", hidden=True, help="What the process that starts the workers tells this one.")
def serve(config_file: Path, ready_file: Path | None, only_check: bool, worker: str | None) -> None:
    """Run the relay: seal outgoing mail, open incoming mail, until SIGTERM.

    Policies, peers' documents, the identity, DKIM keys, password files and certificates count once their files have
    changed. SIGHUP looks at all of them at once, and takes the peers, aliases and DKIM keys of relay.toml. The log says
    which of its other settings need a restart. The log goes to standard error. With the embedded database one relay
    serves from it: a second one waits some seconds for that to end, then gives up.

    With workers = N in [limits] N processes serve at the same addresses. SIGUSR1 starts each anew, one after the
    other, as after an upgrade; no connection is refused meanwhile.
    """
    # Each signal is for some of the relay's processes and must not kill others: `systemctl kill` signals all of a
    # service.
    signals.end_nothing()
    if worker is not None:
        _serve_as_worker(Worker.from_json(worker), config_file)
        return
    text = toml.read(config_file)
    config = load_to_serve(config_file, text)
    if only_check:
        return
    refuse_root(config, config_file)
    configure_logging(config.log, for_good=True)

    def ready(addresses: Mapping[str, TCPAddress]) -> None:
        if ready_file is not None:
            with _told_of(ready_file):
                write_whole(ready_file, "".join(f"{name} {address}\n" for name, address in addresses.items()))

    if ready_file is not None:
        # Before a key is drawn: with a wrong path the relay would be restarted again and again.
        _try(ready_file)
    use_one_heap()
    passed = passed_descriptors()
    if config.limits.workers > 1:
        uvloop.run(workers.serve(config, config_file, text, ready, refuse_others_settings, passed))
        return
    app.load(config)
    # The second process first: a later fork would inherit the relay's lock, and block a new relay.
    settings = Settings(config, partial(load_to_serve, config_file))
    uvloop.run(app.serve(settings, key_receiver.start(config, passed), ready, passed=passed))


def _serve_as_worker(worker: Worker, config_file: Path) -> None:
    """Serves as one of several workers, with the relay.toml text and sockets that it inherits.

    The first process checked who could write the file. Later changes to its permissions do not matter to new workers.
    """

    def read(text: str) -> Config:
        return worker.share_of(load_config(config_file, text))

    child.accept_signals()
    name_process(f"relay worker {worker.number}")
    for each in worker.descriptors:
        os.set_inheritable(each, False)
    use_one_heap()
    config = read(worker.texts.first)
    configure_logging(config.log, for_good=True)
    structlog.contextvars.bind_contextvars(worker=worker.number)
    app.load(config)
    receiver = key_receiver.start(config, worker.descriptors)
    settings = Settings(config, lambda: read(worker.texts.last), logs=False, on_disk=partial(load_config, config_file))
    settings.reload()
    uvloop.run(app.serve(settings, receiver, partial(worker.send, "serves"), worker))


def _try(path: Path) -> None:
    """Tests whether the file can be created. Raises ConfigError."""
    with _told_of(path), TemporaryFile(dir=path.parent):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Context that turns OSError into ConfigError for this path."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
