"""How much a user and a client may send and how many connections there may be, in bounded memory.
Standard: RFC 6409 6.3, RFC 3463 4.7.1; what is over a limit is held, never lost.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from relay.config import load_config
from relay.entry.listening import network_of
from relay.entry.smtp.rates import HourlyRate, Seen
from relay.process import app
from tests.integration.entry.submission.conftest import Start
from tests.testlib import mails
from tests.testlib.sink import Sink

TOO_MUCH = "450 4.7.1 Too much mail within an hour, try again later"


async def test_a_user_sends_so_many_mails_an_hour_over_all_connections(start: Start, sink: Sink) -> None:
    async with start("mails_per_user = 2") as server:
        for _ in range(2):
            async with server.user() as program:
                assert (await program.mail(mails.plain())).startswith("250")
        async with server.user() as program:
            assert await program.mail(mails.plain()) == TOO_MUCH
        async with server.user("printer") as other:
            assert (await other.mail(mails.plain())).startswith("250")
    assert len(sink.got) == 3


async def test_a_user_sends_to_so_many_recipients_an_hour(start: Start, sink: Sink) -> None:
    async with start("recipients_per_user = 3") as server, server.user() as program:
        everybody = tuple(f"{name}@bob.example" for name in ("ben", "carol", "dave"))
        assert (await program.mail(mails.plain(), recipients=everybody)).startswith("250")
        assert await program.mail(mails.plain()) == TOO_MUCH
    assert len(sink.got) == 1


async def test_recipients_over_the_limit_do_not_stop_those_below_it(start: Start, sink: Sink) -> None:
    async with start("recipients_per_user = 1") as server, server.user() as program:
        await program.ask("MAIL FROM:<ann@alice.example>")
        assert await program.ask("RCPT TO:<ben@bob.example>") == "250 2.1.5 Ok"
        assert await program.ask("RCPT TO:<carol@bob.example>") == TOO_MUCH
        assert (await program.ask("DATA")).startswith("354")
        await program.send(mails.plain() + b".\r\n")
        assert (await program.reply()).startswith("250")
    assert sink.got[0].recipients == ("ben@bob.example",)


async def test_a_client_sends_so_many_mails_an_hour_for_all_its_users(start: Start, sink: Sink) -> None:
    async with start("mails_per_client = 2") as server:
        async with server.user() as program:
            await program.mail(mails.plain())
        async with server.user("printer") as program:
            await program.mail(mails.plain())
        async with server.user("printer") as program:
            assert await program.mail(mails.plain()) == TOO_MUCH
    assert len(sink.got) == 2


async def test_a_client_sends_to_so_many_recipients_an_hour_for_all_its_users(start: Start) -> None:
    async with start("recipients_per_client = 1") as server:
        async with server.user() as program:
            assert (await program.mail(mails.plain())).startswith("250")
        async with server.user("printer") as program:
            assert await program.mail(mails.plain()) == TOO_MUCH


async def test_after_a_restart_all_that_was_sent_and_guessed_still_counts(start: Start, sink: Sink) -> None:
    """A user is known at the places where they have logged in before, so guesses do not shut them out."""
    async with start("mails_per_user = 2\nfailed_logins = 3") as server:
        async with server.user() as program:
            for _ in range(2):
                assert (await program.mail(mails.plain())).startswith("250")
        async with server.program(tls=True) as guesser:
            await guesser.ask("EHLO program.example")
            for _ in range(3):
                assert (await guesser.log_in("printer", "a guess")).startswith("535")
    async with app.running(load_config(server.directory / "relay.toml")) as addresses:
        restarted = replace(server, submission=addresses["submission"], submission_tls=addresses["submission_tls"])
        async with restarted.user() as program:
            assert await program.mail(mails.plain()) == TOO_MUCH
        async with restarted.program(tls=True) as guesser:
            await guesser.ask("EHLO program.example")
            assert (await guesser.log_in("printer", "correct horse")).startswith("421 4.7.0 Too many failed logins")
    assert len(sink.got) == 2


async def test_connections_are_counted_over_both_ports(start: Start) -> None:
    async with start("connections_per_client = 2\ntrusted = []") as server, AsyncExitStack() as stack:
        first = await stack.enter_async_context(server.program())
        second = await stack.enter_async_context(server.program(tls=True))
        third = await stack.enter_async_context(server.program())
        assert first.greeting[:3] == second.greeting[:3] == "220"
        assert third.greeting == "421 4.7.0 Too many connections, try again later"


async def test_twenty_senseless_commands_end_a_connection(start: Start) -> None:
    async with start() as server, server.program() as program:
        replies = [await program.ask(f"AUTH PLAIN {number}") for number in range(20)]
        assert replies[-1] == "421 4.7.0 Too many errors, closing the connection"
        assert await program.reply() == ""


async def test_an_idle_client_is_told_and_disconnected(start: Start) -> None:
    async with start("timeout = 1") as server, server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        assert await program.ask("AUTH LOGIN") == "334 VXNlcm5hbWU6"
        assert await program.reply() == "421 4.4.2 Timeout, closing the connection"
        assert await asyncio.wait_for(program.reply(), 30) == ""


def test_what_was_taken_comes_back_with_time() -> None:
    now = 0.0
    rate = HourlyRate(60, clock=lambda: now)
    assert _taken(rate, "ann") == 60
    assert rate.take("ben")
    now = 60.0
    assert _taken(rate, "ann") == 1
    now = 150.0
    assert _taken(rate, "ann") == 1
    now = 1e6
    assert _taken(rate, "ann") == 60


def test_what_is_given_back_can_be_taken_again_and_no_more() -> None:
    rate = HourlyRate(2, clock=lambda: 0.0)
    assert _taken(rate, "ann") == 2
    rate.give_back("ann")
    assert _taken(rate, "ann") == 1
    for _ in range(10):
        rate.give_back("ann")
    assert _taken(rate, "ann") == 2


def _taken(rate: HourlyRate, name: str) -> int:
    """How many there were."""
    number = 0
    while rate.take(name):
        number += 1
    return number


def test_the_tables_do_not_grow_with_the_number_of_names() -> None:
    rate, seen = HourlyRate(1, clock=lambda: 0.0, max_entries=100), Seen(max_entries=100)
    for number in range(10_000):
        rate.take(f"2001:db8:{number:x}::/64")
        seen.add(f"place {number}")
    assert len(rate) == 100
    assert "place 9999" in seen
    assert "place 9899" not in seen


def test_who_is_full_again_takes_no_memory() -> None:
    rate = HourlyRate(10, clock=lambda: 0.0)
    for number in range(100):
        assert rate.take(f"user {number}")
        rate.give_back(f"user {number}")
    assert len(rate) == 0


def test_ipv6_clients_count_by_their_network() -> None:
    assert network_of("2001:db8:1:2::3") == network_of("2001:db8:1:2:ffff::4") == "2001:db8:1:2::/64"
    assert network_of("2001:db8:1:3::3") != network_of("2001:db8:1:2::3")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"
    assert network_of("fe80::1%eth0") == "fe80::/64"
