"""Who may log in, in which words, what is answered to everything else, and how guessing is slowed down.
Standard: RFC 4954, RFC 4616; a failed login reveals nothing about who is a user here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from argon2 import PasswordHasher, extract_parameters
from hypothesis import given, strategies as st

from relay.entry.smtp.auth import counted_name
from relay.entry.smtp.users import MAX_NAME
from tests.integration.entry.submission.conftest import Server, Start, write_users
from tests.integration.entry.submission.program import MailProgram, b64, connected, plain
from tests.testlib.speed import seconds

LOGGED_IN = "235 2.7.0 Authentication successful"
WRONG = "535 5.7.8 Authentication credentials invalid"
NOT_VALID = "501 5.5.2 Not a valid authentication response"
TOO_LONG = "500 5.5.6 Authentication exchange line is too long"
TOO_MANY = "421 4.7.0 Too many failed logins, try again later"
USERNAME, PASSWORD = "334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"
GOOD = plain("ann", "correct horse")


@pytest.mark.parametrize(
    "dialogue",
    [
        [(f"AUTH PLAIN {GOOD}", LOGGED_IN)],
        [(f"auth plain {GOOD}", LOGGED_IN)],
        [("AUTH PLAIN", "334 "), (GOOD, LOGGED_IN)],
        [(f"AUTH PLAIN {plain('ann', 'correct horse', acting_for='ann')}", LOGGED_IN)],
        [("AUTH LOGIN", USERNAME), (b64("ann"), PASSWORD), (b64("correct horse"), LOGGED_IN)],
        [(f"AUTH LOGIN {b64('ann')}", PASSWORD), (b64("correct horse"), LOGGED_IN)],
        [(f"AUTH PLAIN {plain('board@ALICE.example', 'correct horse')}", LOGGED_IN)],
    ],
)  # fmt: skip
async def test_users_log_in_with_plain_and_login(server: Server, dialogue: list[tuple[str, str]]) -> None:
    async with server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        for line, reply in dialogue:
            assert await program.ask(line) == reply


@pytest.mark.parametrize(
    "dialogue",
    [
        [("AUTH PLAIN", "334 "), ("*", "501 5.7.0 Authentication cancelled")],
        [("AUTH LOGIN", USERNAME), ("*", "501 5.7.0 Authentication cancelled")],
        [("AUTH LOGIN", USERNAME), (b64("ann"), PASSWORD), ("*", "501 5.7.0 Authentication cancelled")],
        [("AUTH PLAIN not*base64", NOT_VALID)],
        [("AUTH PLAIN", "334 "), ("not base64", NOT_VALID)],
        [("AUTH PLAIN", "334 "), (GOOD[:-1], NOT_VALID)],
        [("AUTH PLAIN", "334 "), ("", NOT_VALID)],
        [("AUTH PLAIN", "334 "), ("\xff\xfe", NOT_VALID)],
        [("AUTH PLAIN =", NOT_VALID)],
        [(f"AUTH PLAIN {b64('ann')}", NOT_VALID)],
        [(f"AUTH PLAIN {b64(chr(0) * 5)}", NOT_VALID)],
        [(f"AUTH PLAIN {GOOD} more", NOT_VALID)],
        [("AUTH PLAIN", "334 "), ("A" * 12300, TOO_LONG)],
        [("AUTH LOGIN", USERNAME), ("A" * 1_000_000, TOO_LONG)],
        [(f"AUTH PLAIN {'A' * 4000}", "500 5.5.2 Line too long")],
        [("AUTH", "501 5.5.4 Syntax: AUTH mechanism [initial-response]")],
        [("AUTH CRAM-MD5", "504 5.5.4 Unrecognized authentication type")],
        [(f"AUTH X\xe4 {GOOD}", "504 5.5.4 Unrecognized authentication type")],
        [(f"AUTH PLAIN {plain('ann', 'wrong')}", WRONG)],
        [(f"AUTH PLAIN {plain('nobody', 'correct horse')}", WRONG)],
        [(f"AUTH PLAIN {plain('Ann', 'correct horse')}", WRONG)],
        [(f"AUTH PLAIN {plain('ann', '')}", WRONG)],
        [(f"AUTH PLAIN {plain('', 'correct horse')}", WRONG)],
        [(f"AUTH PLAIN {plain('ann', 'correct horse', acting_for='printer')}", WRONG)],
        [("AUTH PLAIN AGFubgD/", WRONG)],
        [("AUTH LOGIN =", PASSWORD), (b64("correct horse"), WRONG)],
        [(f"AUTH LOGIN {b64('ann')}", PASSWORD), (b64("correct horse" + chr(0)), WRONG)],
    ],
)  # fmt: skip
async def test_everything_else_is_refused_and_the_client_may_try_again(
    server: Server, dialogue: list[tuple[str, str]]
) -> None:
    async with server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        for line, reply in dialogue:
            assert await program.ask(line) == reply
        assert (await program.ask("MAIL FROM:<ann@alice.example>")).startswith("530 5.7.0 ")
        assert await program.log_in() == LOGGED_IN


async def test_nobody_logs_in_twice(server: Server) -> None:
    async with server.user() as program:
        assert await program.ask(f"AUTH PLAIN {plain('printer', 'correct horse')}") == "503 5.5.1 Already authenticated"
        assert (await program.ask("MAIL FROM:<anybody@example.org>")).startswith("553 5.7.1 ")


async def test_a_login_needs_ehlo_first(server: Server) -> None:
    async with server.program(tls=True) as program:
        assert await program.ask(f"AUTH PLAIN {GOOD}") == "503 5.5.1 Send EHLO first"
        await program.ask("HELO program.example")
        assert await program.ask(f"AUTH PLAIN {GOOD}") == "503 5.5.1 Send EHLO first"


async def test_a_client_that_leaves_in_the_middle_of_a_login_does_no_harm(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    async with server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        assert await program.ask("AUTH LOGIN") == USERNAME
    async with server.user() as other:
        assert await other.ask("NOOP") == "250 2.0.0 Ok"
    assert "smtp_failed" not in capsys.readouterr().out


async def test_neither_passwords_nor_responses_are_logged(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    async with server.user() as program:
        await program.ask("QUIT")
    async with server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        await program.log_in("ann", "hunter2-wrong")
        await program.ask(f"AUTH {plain('ann', 'hunter2-wrong')}")
    log = capsys.readouterr().out
    assert "logged_in" in log
    assert "login_failed" in log
    for secret in ("correct horse", GOOD, "hunter2", plain("ann", "hunter2-wrong"), "argon2id"):
        assert secret not in log


async def test_a_name_that_is_not_there_costs_as_much_work_as_a_wrong_password(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    verify = PasswordHasher.verify

    def counted(self: PasswordHasher, password_hash: str, password: str) -> bool:
        checked.append(password_hash)
        return verify(self, password_hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    async with start(hasher=PasswordHasher) as server, server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        await program.log_in("nobody", "correct horse")
    [password_hash] = checked
    parameters, default = extract_parameters(password_hash), PasswordHasher()
    assert (parameters.time_cost, parameters.memory_cost) == (default.time_cost, default.memory_cost)


async def test_few_passwords_are_checked_at_once_and_nobody_else_waits_for_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes 64 MiB: a crowd that logs in must not take all memory, nor the event loop."""
    lock, two, go_on = threading.Lock(), threading.Event(), threading.Event()
    running: list[int] = [0]

    def slow(self: PasswordHasher, password_hash: str, password: str) -> bool:
        with lock:
            running.append(running[-1] + 1)
            if running[-1] == 2:
                two.set()
        assert go_on.wait(30)
        with lock:
            running.append(running[-1] - 1)
        return True

    async def log_in() -> str:
        async with server.program(tls=True) as program:
            await program.ask("EHLO program.example")
            return await program.log_in()

    monkeypatch.setattr(PasswordHasher, "verify", slow)
    crowd = [asyncio.create_task(log_in()) for _ in range(8)]
    assert await asyncio.to_thread(two.wait, 30)
    async with server.program(tls=True) as other:
        assert await other.ask("NOOP") == "250 2.0.0 Ok"
    go_on.set()
    assert await asyncio.gather(*crowd) == [LOGGED_IN] * 8
    assert max(running) == 2


@pytest.mark.parametrize(("hosts", "is_known"), [(1, False), (1, True), (25, True)])
async def test_250_wrong_passwords_at_once_hold_up_neither_other_addresses_nor_users_where_they_have_been(
    start: Start, monkeypatch: pytest.MonkeyPatch, hosts: int, is_known: bool
) -> None:
    """Each check of a wrong password ends only when it is let; by then all others wait behind it, Ann does not."""
    let, checked = threading.Semaphore(0), [0]
    real = PasswordHasher.verify

    def slow(self: PasswordHasher, password_hash: str, password: str) -> bool:
        if password == "wrong":
            assert let.acquire(timeout=60)
            checked[0] += 1
        return real(self, password_hash, password)

    async def guess(number: int) -> str:
        async with _from(f"127.0.1.{number % hosts + 1}", server) as guesser:
            asked.add(number)
            return await guesser.log_in(f"user{number}", "wrong")

    asked: set[int] = set()
    async with start("failed_logins = 1000\nconnections_per_client = 1000") as server:
        if is_known:
            async with server.user():
                pass
        monkeypatch.setattr(PasswordHasher, "verify", slow)
        crowd = [asyncio.create_task(guess(number)) for number in range(250)]
        async with asyncio.timeout(60):
            while len(asked) < len(crowd):
                await asyncio.sleep(0.05)
        ann = asyncio.create_task(_logged_in(server))
        while not ann.done() and checked[0] < 200:
            let.release()
            await asyncio.wait([ann], timeout=0.05)
        waited_for = checked[0]
        let.release(len(crowd))
        assert await ann == LOGGED_IN
        assert waited_for < 150, "she waits for a few of them at most"
        assert set(await asyncio.gather(*crowd)) == {WRONG}


async def _logged_in(server: Server) -> str:
    async with server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        return await program.log_in()


async def test_a_failure_is_answered_only_after_a_while(start: Start) -> None:
    async with start(failure_delay=0.5) as server, server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        begun = asyncio.get_running_loop().time()
        assert await program.log_in("ann", "wrong") == WRONG
        assert asyncio.get_running_loop().time() - begun >= 0.5


async def test_after_too_many_failures_even_the_right_password_is_not_looked_at(start: Start) -> None:
    async with start("failed_logins = 3") as server:
        async with server.program(tls=True) as program:
            await program.ask("EHLO program.example")
            for name in ("ann", "nobody", "printer"):
                assert await program.log_in(name, "wrong") == WRONG
            assert await program.log_in() == TOO_MANY
            assert await program.reply() == ""
        async with _from("127.0.0.2", server) as elsewhere:
            assert await elsewhere.log_in() == LOGGED_IN


@pytest.mark.promise("Guessing a password is counted for the user")
@pytest.mark.parametrize(
    "name",
    ["Ann", "ANN", " ann ", "ann@alice.example", "ANN@Alice.Example", "ann@elsewhere.example", "ann@a@b", "\uff41nn", "a\uff2e\uff4e"],
)  # fmt: skip
async def test_guesses_under_another_spelling_of_a_name_are_guesses_at_that_user(start: Start, name: str) -> None:
    """Whatever knows the users may read it as the same name: Dovecot folds case and may drop the domain."""
    async with start("failed_logins = 3") as server:
        for host, spelling in (("127.0.0.2", name), ("127.0.0.3", name), ("127.0.0.4", "ann")):
            async with _from(host, server) as guesser:
                assert await guesser.log_in(spelling, "wrong") == WRONG
        async with _from("127.0.0.5", server) as stranger:
            assert await stranger.log_in() == TOO_MANY
        async with _from("127.0.0.6", server) as other:
            assert await other.log_in("printer") == LOGGED_IN


async def test_a_user_who_was_here_before_is_known_under_each_spelling(start: Start) -> None:
    """The count of the client's network is one as well, so that a neighbour does not get a fresh one for each spelling."""
    async with start("failed_logins = 2") as server:
        async with server.user():
            pass
        async with _from("127.0.0.1", server) as neighbour:
            for name in ("ANN", "ann@x.example"):
                assert await neighbour.log_in(name, "wrong") == WRONG
            assert await neighbour.log_in("Ann", "wrong") == TOO_MANY


@given(st.text(max_size=300))
def test_names_are_counted_alike_in_any_case_and_width_and_are_never_long(name: str) -> None:
    counted = counted_name(name)
    assert len(counted) <= MAX_NAME
    assert counted == counted_name(f"\t{name} ")
    if len(name) < MAX_NAME // 3 and "@" not in name:
        assert counted == counted_name(f"{name}@alice.example") or not name.strip()
        assert counted == counted_name(name.upper()) == counted_name(name.casefold())


@pytest.mark.parametrize(
    "name", ["a" + "\u0315\u0300" * 6000, "\ufdfa" * 9000, "@" * 12_000, " " * 12_000, "a@" * 6000]
)
def test_a_name_made_to_hurt_is_counted_in_no_time(name: str) -> None:
    assert seconds(lambda: [counted_name(name) for _ in range(20)]) < 20 * 0.01


async def test_many_guesses_at_once_are_many_guesses(start: Start) -> None:
    async def guess() -> str:
        async with server.program(tls=True) as program:
            await program.ask("EHLO program.example")
            return await program.log_in("ann", "wrong")

    async with start("failed_logins = 3") as server:
        replies = await asyncio.gather(*(guess() for _ in range(10)))
        assert sorted(replies) == [TOO_MANY] * 7 + [WRONG] * 3


@pytest.mark.parametrize("is_known", [False, True])
async def test_logins_under_way_are_no_failures_and_the_next_ones_wait_for_them(
    start: Start, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    held = HeldChecks(monkeypatch)
    async with start("failed_logins = 3") as server:
        if is_known:
            held.go_on.set()
            async with server.user():
                pass
            held.go_on.clear()
        crowd = [asyncio.create_task(_logged_in(server)) for _ in range(25)]
        await held.until(2)
        done, _ = await asyncio.wait(crowd, timeout=0.5)
        held.go_on.set()
        assert [each.result() for each in done] == []
        assert await asyncio.gather(*crowd) == [LOGGED_IN] * 25


async def test_a_login_that_waits_is_refused_without_a_check_once_the_attempts_before_it_have_failed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def guess() -> str:
        async with _from("127.0.0.2", server) as guesser:
            return await guesser.log_in("ann", "wrong")

    held = HeldChecks(monkeypatch)
    async with start("failed_logins = 2") as server:
        guesses = [asyncio.create_task(guess()) for _ in range(2)]
        await held.until(2)
        waiting = [asyncio.create_task(_logged_in(server)) for _ in range(5)]
        done, _ = await asyncio.wait(waiting, timeout=0.5)
        held.go_on.set()
        assert not done
        assert await asyncio.gather(*guesses) == [WRONG] * 2
        assert await asyncio.gather(*waiting) == [TOO_MANY] * 5
    assert held.begun == 2


async def test_a_guess_whose_client_leaves_before_the_reply_counts(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldChecks(monkeypatch)
    async with start("failed_logins = 2") as server:
        for number in (1, 2):
            async with _from("127.0.0.2", server) as guesser:
                await guesser.send(f"AUTH PLAIN {plain('ann', 'wrong')}\r\n".encode())
                await held.until(number)
        held.go_on.set()
        assert await _logged_in(server) == TOO_MANY


async def test_a_login_that_waits_for_others_too_long_is_a_temporary_failure_and_leaves_nothing_behind(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldChecks(monkeypatch)
    async with start("failed_logins = 1") as server:
        first = asyncio.create_task(_logged_in(server))
        await held.until(1)
        with monkeypatch.context() as soon:
            soon.setattr("relay.entry.smtp.auth.PATIENCE_S", 0.1)
            assert await _logged_in(server) == "454 4.7.0 Temporary authentication failure"
        held.go_on.set()
        assert await first == LOGGED_IN
        assert await _logged_in(server) == LOGGED_IN


async def test_what_is_refused_for_a_users_failures_is_no_failure_of_the_network(start: Start) -> None:
    async with start("failed_logins = 2") as server:
        for host in ("127.0.0.2", "127.0.0.3"):
            async with _from(host, server) as guesser:
                assert await guesser.log_in("ann", "wrong") == WRONG
        for _ in range(3):
            assert await _logged_in(server) == TOO_MANY
        async with _from("127.0.0.1", server) as neighbour:
            assert await neighbour.log_in("printer") == LOGGED_IN


class HeldChecks:
    """Each check of a password waits until `go_on` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go_on, self.begun = threading.Event(), 0
        real = PasswordHasher.verify

        def held(hasher: PasswordHasher, password_hash: str, password: str) -> bool:
            self.begun += 1
            assert self.go_on.wait(60)
            return real(hasher, password_hash, password)

        monkeypatch.setattr(PasswordHasher, "verify", held)

    async def until(self, number: int) -> None:
        """Waits until so many checks have begun."""
        async with asyncio.timeout(60):
            while self.begun < number:
                await asyncio.sleep(0.01)


async def test_guesses_from_elsewhere_do_not_shut_a_user_out_where_they_have_been(start: Start) -> None:
    async with start("failed_logins = 2") as server:
        async with server.user():
            pass
        for host in ("127.0.0.2", "127.0.0.3"):
            async with _from(host, server) as guesser:
                assert await guesser.log_in("ann", "wrong") == WRONG
        async with _from("127.0.0.4", server) as stranger:
            assert await stranger.log_in() == TOO_MANY
        async with server.user():
            pass


async def test_a_neighbours_wrong_passwords_do_not_shut_a_user_out_where_they_have_been(start: Start) -> None:
    async with start("failed_logins = 2") as server:
        async with server.user():
            pass
        async with _from("127.0.0.1", server) as neighbour:
            for _ in range(2):
                assert await neighbour.log_in("printer", "wrong") == WRONG
            assert await neighbour.log_in("printer") == TOO_MANY
        async with server.user():
            pass


@asynccontextmanager
async def _from(host: str, server: Server) -> AsyncIterator[MailProgram]:
    """A program at another address, which has said EHLO over TLS."""
    async with connected(server.submission_tls, server.trust, tls=True, local_host=host) as program:
        await program.ask("EHLO program.example")
        yield program


async def test_a_new_user_may_log_in_at_once_and_a_removed_one_sends_no_more(
    server: Server, users: str, correct_horse: str
) -> None:
    async with server.user() as ann:
        _edit(server, users.replace("ann:", "eve:"))
        async with server.user("eve") as eve:
            assert (await eve.ask("MAIL FROM:<ann@alice.example>")).startswith("250")
        assert await ann.ask("MAIL FROM:<ann@alice.example>") == "530 5.7.0 Authentication required"
    async with server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        assert await program.log_in() == WRONG


@pytest.mark.parametrize("edit", ["ann:no hash:*\n", "ann\n", "", None])
async def test_a_broken_edit_of_the_password_file_leaves_what_was_before(
    server: Server, edit: str | None, users: str
) -> None:
    if edit is None:
        (server.directory / "users").unlink()
    else:
        _edit(server, edit + users if edit else "\xff")
    async with server.user() as program:
        assert (await program.ask("MAIL FROM:<ann@alice.example>")).startswith("250")


def _edit(server: Server, text: str) -> None:
    """As an editor does: a new file in the place of the old one."""
    new = server.directory / "users.new"
    write_users(new, text)
    new.replace(server.directory / "users")


async def test_a_back_end_that_does_not_answer_is_a_temporary_failure(start: Start, tmp_path: Path) -> None:
    async with (
        start("failed_logins = 1", users_setting='dovecot_auth = "nothing-here"') as server,
        server.program(tls=True) as program,
    ):
        await program.ask("EHLO program.example")
        for _ in range(3):
            assert await program.log_in() == "454 4.7.0 Temporary authentication failure"
