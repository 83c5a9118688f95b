"""What a process does before it forks others that are the relay or its commands: a forked one does it no more.
Standard: what each of them would otherwise build, look through and thereby copy for itself, stays shared.
"""

from __future__ import annotations

import gc

from pydantic import BaseModel

from relay.files.toml import Table


def share_all() -> None:
    """To be called when everything is loaded."""
    _build(Table)
    # A relay has its collector look at all that there is; of each page that it touches a forked one gets a copy.
    gc.collect()
    gc.freeze()


def _build(model: type[BaseModel]) -> None:
    """What reads the tables of relay.toml and of policies, which each process makes when it is first asked for."""
    model.model_rebuild()
    for each in model.__subclasses__():
        _build(each)
