"""Rules about mail that Postfix itself keeps back, refuses or throws away, so that the relay never hears of it.
Standard: postconf(5), defer_transports; header_checks(5) and access(5). Tables are asked as Postfix asks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from relay.postfix.bypass import tables_of_access, tables_of_fields
from relay.postfix.flow import MailFlow
from relay.postfix.settings import PostfixFault
from relay.postfix.tables import Tables

FIELDS = (
    "Received: from localhost (localhost [127.0.0.1])",
    "From: <anybody@nowhere.invalid>",
    "Subject: [...]",
    "MIME-Version: 1.0",
    'Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data; name="smime.p7m"',
    "Content-Transfer-Encoding: base64",
    'Content-Disposition: attachment; filename="smime.p7m"',
)
"""Fields of every sealed mail (relay/FORMAT.md)."""
ADDRESSES = ("anybody@nowhere.invalid",)
"""An address that no table names: an action on it is one on everybody. Refusals are what such tables are for."""
STOPS = re.compile(r"HOLD|REJECT|[45]\d\d\b", re.IGNORECASE)
STOPS_EVERYBODY = re.compile(r"HOLD", re.IGNORECASE)
DISCARDS = re.compile(r"DISCARD", re.IGNORECASE)


def transports_deferred(flow: MailFlow) -> Iterator[PostfixFault]:
    """Mail for these transports is tried by `postqueue -f` alone."""
    managers = [each for each in flow.settings.services if each.command in ("qmgr", "oqmgr")]
    for setting in (flow.settings.of("defer_transports", each) for each in managers):
        if setting.value:
            text = "Postfix delivers no mail by these transports: it waits in the queue, and the relay does not see it"
            yield setting.fault("transports-deferred", text, setting.to(""))


async def actions(flow: MailFlow, tables: Tables) -> list[PostfixFault]:
    """What header checks do to every sealed mail, and access tables to everybody's mail."""
    faults = []
    asked = ((tables_of_fields(flow), FIELDS, STOPS), (tables_of_access(flow), ADDRESSES, STOPS_EVERYBODY))
    for places, samples, stops in asked:
        for where, table in dict.fromkeys(places):
            said = set((await tables.answers(table, samples)).values())
            for action in sorted(each for each in said if DISCARDS.match(each)):
                text = f"{action} in {table} throws sealed or all mail away: it IS LOST, and its sender hears 250"
                faults.append(PostfixFault("action-discards", where, text, "take the action out"))
            for action in sorted(each for each in said if stops.match(each)):
                text = (
                    f"{action} in {table} keeps sealed or all mail back, or refuses it, and the relay does not see it"
                )
                faults.append(PostfixFault("action-stops", where, text, "take the action out"))
    return faults
