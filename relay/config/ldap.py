"""The table [ldap] of relay.toml: the directory from which `qumail-relay groups fetch` takes groups of people.
Standard: RFC 4511 to 4516 (LDAP), RFC 4513 (TLS, simple authentication).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from relay.config.values import PathSetting, as_tuple
from relay.files import toml

_SCHEMES = ("ldaps://", "ldap://", "ldapi://")


def _url(text: str) -> str:
    if not text.startswith(_SCHEMES) or any(each.isspace() for each in text):
        raise ValueError(f"{text!r}: write ldaps://HOST, or ldap://HOST for StartTLS")
    return text


class LDAPSettings(toml.Table):
    """The directory of people (Active Directory, OpenLDAP) from which `qumail-relay groups fetch` writes groups.toml; a
    serving relay never asks it.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "servers": ["ldaps://dc1.alice.example", "ldaps://dc2.alice.example"],
        "ca": "/etc/qumail-relay/ldap-ca.pem",
        "user": "cn=qumail,ou=services,dc=alice,dc=example",
        "password": "/etc/qumail-relay/ldap.password",
        "base": "dc=alice,dc=example",
        "groups": {"board": "cn=board,ou=groups,dc=alice,dc=example"},
    }

    servers: Annotated[tuple[Annotated[str, AfterValidator(_url)], ...], BeforeValidator(as_tuple), Field(min_length=1)]
    """Tried in turn: ldaps://HOST, ldap://HOST (with StartTLS), or ldapi://%2Fpath%2Fto%2Fsocket."""
    ca: PathSetting | None = None
    """PEM file of the CAs of these servers; by default those of the system."""
    user: str | None = None
    """The DN of an account that may only read; by default none."""
    password: PathSetting | None = None
    """The file with its password; readable by root alone, if root runs the command."""
    base: str = Field(min_length=1)
    """The DN below which people and groups are searched."""
    groups: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")], str] = Field(min_length=1)
    """The DN of each group, by its name in policies (`group:NAME`). Groups within groups count."""
    old_after: Annotated[float, Field(ge=60, le=90 * 86_400, strict=False)] = 2 * 86_400.0
    """Seconds without a successful fetch after which the alarm `groups_old` begins."""

    @model_validator(mode="after")
    def _user_has_a_password(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password: give both, or none")
        return self
