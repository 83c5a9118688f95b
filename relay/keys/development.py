"""Where the development key servers keep their certificates and how a client finds their addresses.
Standard: XDG Base Directory Specification 0.8 (state files); the addresses are URLs of RFC 3986.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from relay.errors import ConfigError

KME_IDS = ("KM1", "KM2")
"""The two development KMEs: Alice's, then Bob's. Every pair here and in relay/kme/ is in this order."""

DEFAULT_PORTS = (13000, 14000)
"""TCP ports of KM1 and KM2 unless others are chosen."""

ENDPOINTS_FILE = "endpoints.json"
"""File in the state directory, there while the servers run: `{"KM1": "https://...", "KM2": "https://..."}`."""


def default_state_dir() -> Path:
    """The directory of certificates and addresses: `$XDG_STATE_HOME/qumail-relay/kme`.

    Without XDG_STATE_HOME, or where it is not absolute (the specification says to ignore it then),
    `~/.local/state` stands in its place.
    """
    root = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not root.is_absolute():
        root = Path.home() / ".local" / "state"
    return root / "qumail-relay" / "kme"


def elsewhere_file() -> Path:
    """The file in the default directory that names another one, there while servers run over that one."""
    return default_state_dir() / "elsewhere.json"


def state_dir_in_use() -> Path:
    """The state directory of the servers that run: the one that `qumail-relay kme --state` has noted, or the default.

    Raises ConfigError where the note cannot be used.
    """
    path = elsewhere_file()
    try:
        noted = Path(json.loads(path.read_bytes())["state"])
    except FileNotFoundError:
        return default_state_dir()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: names no directory; remove it") from error
    # Servers that were killed leave their note behind.
    return noted if (noted / "ca.pem").is_file() else default_state_dir()


def endpoints(state_dir: Path) -> tuple[str, str]:
    """The base URLs of KM1 and KM2, without a slash at the end.

    They are those that running servers wrote into ENDPOINTS_FILE, else localhost with DEFAULT_PORTS.
    Raises ConfigError where the file is there and cannot be used.
    """
    path = state_dir / ENDPOINTS_FILE
    try:
        written = json.loads(path.read_bytes())
        first, second = (_https(written[kme]) for kme in KME_IDS)
    except FileNotFoundError:
        first, second = (f"https://localhost:{port}" for port in DEFAULT_PORTS)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: not the addresses of {' and '.join(KME_IDS)}; remove it") from error
    return first, second


def _https(url: object) -> str:
    if not isinstance(url, str) or urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
        raise ValueError("not an https URL")
    return url.rstrip("/")
