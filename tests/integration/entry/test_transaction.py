"""A transaction takes addresses alone: nothing in one can end it, and with it begin another command or parameter.
Standard: RFC 5321 4.1.2.
"""

from __future__ import annotations

import pytest

from relay.config import ListenerSettings
from relay.entry.budget import Budget
from relay.entry.listening import SocketServer
from relay.entry.transaction import BadParameter, Transaction
from relay.mail import UNKNOWN
from tests.integration.entry.smtp.recipes import Recorder

BAD = (
    "ann@a.example\r\nRCPT TO:<eve@b.example",
    "ann@a.example\n",
    "ann@a.example> ORCPT=rfc822;eve",
    "<ann@a.example>",
    '"ann\r\n"@a.example',
    "ann @a.example",
)


@pytest.mark.parametrize("address", BAD)
def test_an_address_with_more_than_an_address_in_it_is_no_sender_and_no_recipient(address: str) -> None:
    refusals: list[Exception] = []
    server = SocketServer(ListenerSettings(), Budget(1), "test", refusals.append)
    transaction = Transaction(server, Recorder())
    with pytest.raises(BadParameter):
        transaction.mail(address)
    transaction.mail("ann@a.example")
    with pytest.raises(BadParameter):
        transaction.rcpt(address)
    assert len(refusals) == 2, "each is counted"
    for blank in "\t \xa0\u2028":
        with pytest.raises(BadParameter):
            transaction.rcpt("ben@b.example", [f"ORCPT=utf-8;ben{blank}x"], utf8=True)
    transaction.rcpt("ben@b.example")
    mail = transaction.complete(b"a: b\r\n\r\n", origin=UNKNOWN, each_answered=True)
    assert (mail.envelope.sender, mail.envelope.addresses, mail.listener) == (
        "ann@a.example",
        ("ben@b.example",),
        "test",
    )
