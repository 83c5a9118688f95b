"""Commands that work with the relay's own files run as the relay's user, also where root types them.
Standard: setgroups(2), setgid(2), setuid(2), in this order; nothing of root is left then, and nothing is made as root.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from relay.config import load_config
from relay.errors import ConfigError


def become_the_relays_user(config_file: Path) -> None:
    """From here on as whoever owns the site secret, where root runs this and it is not root's; else nothing changes.

    What this process has opened before stays open: a message file that only root can read, for one.
    """
    if os.geteuid():
        return
    try:
        secret = load_config(config_file).store.secret
        owner = (secret if secret.exists() else secret.parent).stat()
    except (ConfigError, OSError):
        return  # which the command itself will find
    if owner.st_uid == 0:
        return
    try:
        user = pwd.getpwuid(owner.st_uid)
    except KeyError:
        return
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ["HOME"] = user.pw_dir
