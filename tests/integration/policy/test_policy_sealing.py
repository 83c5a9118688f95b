"""What the settings do to real mail: sizes, how long it is held, the reserve, and rules about the message.
Standard: policies/README.md; the answers are SMTP's, and nothing leaves that is not accounted for.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import LogCapture

from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.policy import structure
from relay.policy.load import load_policies
from relay.process import assembly
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.sink import Sink
from tests.testlib.sites import ANY_SENDER, make_site, serving
from tests.testlib.submit import SMTPReply, submit

OTHERWISE = (("ann", "hold"), ("ben", "refuse"), ("cleo", "hold 1 h"))
HELD_LONG = 'levels = ["pqc+aes", "pqc"]\notherwise = "hold 1 h"\n'


async def through_alice(
    directory: Path,
    kmes: DevelopmentKMEs,
    sink: Sink,
    policy: str,
    *messages: bytes,
    kme_settings: str = "",
    **how: Any,
) -> list[SMTPReply]:
    """The replies to these messages."""
    site = make_site(
        directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies={"bob.example.toml": policy}, kme_settings=kme_settings,
    )  # fmt: skip
    async with serving(site) as addresses:
        return [await submit(addresses["outgoing"], message, **how) for message in messages]


def protections(log: LogCapture) -> list[str]:
    return [entry["protection"] for entry in log.entries if entry["event"] in ("sealed_and_sent", "sent_in_clear")]


def received(ago: timedelta) -> bytes:
    return f"Received: from a by b; {format_datetime(datetime.now(UTC) - ago)}\r\n".encode() + mails.plain()


@pytest.mark.in_process
async def test_a_message_that_is_too_large_for_a_level_goes_by_the_next(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    policy = 'levels = ["otp", "aes"]\nmax_size = { otp = "1 KiB", aes = "10 KiB" }\n'
    sizes = (mails.plain(), mails.plain(body="x" * 2000 + "\r\n"), mails.plain(body="x" * 20_000 + "\r\n"))
    replies = await through_alice(tmp_path, kmes, sink, policy, *sizes)
    assert [reply.code for reply in replies] == [250, 250, 552]
    assert protections(log) == ["otp", "aes"]
    causes = [str(entry.get("cause", "")) for entry in log.entries]
    assert any("aes: the message has" in cause and "and max_size is 10240" in cause for cause in causes)


async def test_mail_is_held_for_as_long_as_policy_says_and_then_refused(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    early, late, unknown = await through_alice(
        tmp_path, kmes, sink, HELD_LONG, received(timedelta(minutes=59)), received(timedelta(minutes=61)), mails.plain()
    )
    assert [str(reply)[:9] for reply in (early, late, unknown)] == ["451 4.7.1", "550 5.7.1", "451 4.7.1"]
    assert not sink.got


@pytest.mark.in_process
async def test_mail_of_low_priority_leaves_the_reserve_to_others(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    policy = 'levels = ["aes"]\npriority = "low"\n[[when]]\nsubject_tag = "[now]"\npriority = "normal"\n'
    low, normal = await through_alice(
        tmp_path, kmes, sink, policy, mails.plain(), mails.plain(subject="[now] x"),
        kme_settings="reserve = 10_000_000\nprefetch = false\n",
    )  # fmt: skip
    assert (low.code, normal.code) == (451, 250)
    assert any("reserved for mail of normal priority" in str(entry.get("cause", "")) for entry in log.entries)


@pytest.mark.in_process
async def test_mail_from_the_null_sender_is_of_low_priority_whatever_the_policy_says(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    policy = 'levels = ["aes"]\npriority = "low"\n[[when]]\nsender = "<>"\npriority = "normal"\n'
    reserve = "reserve = 10_000_000\nprefetch = false\n"
    [bounce] = await through_alice(tmp_path, kmes, sink, policy, mails.plain(), kme_settings=reserve, sender="")
    assert bounce.code == 451
    assert any("reserved for mail of normal priority" in str(entry.get("cause", "")) for entry in log.entries)


async def test_one_pad_does_for_recipients_whose_policies_differ_in_what_means_nothing_at_that_level(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    files = {f"bob.example/{name}.toml": f'levels = ["otp"]\notherwise = "{word}"\n' for name, word in OTHERWISE}
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address, policies=files
    )
    recipients = [f"{name}@bob.example" for name, _ in OTHERWISE]
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
    assert [each.recipients for each in sink.got] == [tuple(recipients)]

    async with assembly.parts(site.config) as built:  # nor is a milter's mail held that must not be split
        recipe = assembly.outgoing_recipe(built)
        whole = replace(recipe, direction=recipe.direction.model_copy(update={"milter_split": False}))
        mail = Mail(Envelope("ann@alice.example", tuple(map(Recipient, recipients))), mails.plain(subject="other"))
        answer = await whole.in_place(mail, lambda _: True)
    assert (answer.outcomes, answer.message is not None) == ((None, None, None), True)


@pytest.mark.promise("No text in a message lowers what policy wants")
@pytest.mark.in_process
async def test_what_was_sealed_before_leaves_as_it_is_only_where_its_layers_are_what_policy_wants(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, log: LogCapture
) -> None:
    policy = 'levels = ["aes"]\n[[when]]\nsender = "*@board.alice.example"\nlevels = ["otp"]\n'
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies={"bob.example.toml": policy}, peer_settings=ANY_SENDER,
    )  # fmt: skip
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
        again = wire.got[0].message
        assert (await submit(addresses["outgoing"], again)).code == 250
        assert (await submit(addresses["outgoing"], again, sender="chair@board.alice.example")).code == 250
    assert protections(log) == ["aes", "aes", "otp"]
    contents = [mime.sealed_content(got.message) for got in wire.got]
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("level", ["otp", "aes", "pqc", "rsa"])
@pytest.mark.in_process
async def test_what_was_sealed_before_a_restart_is_not_sealed_again(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, identities: Identities, level: str
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies={"bob.example.toml": f'levels = ["{level}"]\n'}, identities=identities,
    )  # fmt: skip
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    requeued = b"Received: by mail.alice.example (Postfix, from userid 1)\r\n\tid 1; today\r\n" + wire.got[0].message
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], requeued)).code == 250
    first, second = (mime.sealed_content(got.message) for got in wire.got)
    assert first == second


@pytest.mark.parametrize(
    ("otherwise", "answer"), [("refuse", "552 5.2.3 Message too big"), ("hold", "552 5.2.3 Message too big")]
)
@pytest.mark.in_process
async def test_who_sends_more_than_any_level_takes_hears_that_it_is_too_much(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, otherwise: str, answer: str
) -> None:
    policy = f'levels = ["otp"]\nmax_size = {{ otp = "1 KiB" }}\notherwise = "{otherwise}"\n'
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies={"bob.example.toml": policy},
    )  # fmt: skip
    async with serving(site) as addresses:
        reply = await submit(addresses["outgoing"], mails.plain(body="x" * 70 + "\r\n" * 1000))
        assert str(reply).startswith(answer)
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250


@pytest.mark.in_process
async def test_the_log_says_which_policies_held_a_mail_and_what_ends_soon(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    soon = datetime.now(UTC).date() + timedelta(days=5)
    policy = f'levels = ["otp"]\nmax_size = {{ otp = 10 }}\nuntil = {soon}\n'
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies={"bob.example.toml": policy},
    )  # fmt: skip
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 552
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=["x@nobody.example"])).code == 451
    version = load_policies(site.directory / "policies", {"bob": ["bob.example"]}).version
    [held] = [each for each in log.entries if each["event"] == "not_sealed"]
    assert (held["policy_version"], "max_size is 10" in held["cause"]) == (version, True)
    of_rcpt = [each["event"] for each in log.entries if "no policy covers" in each.get("cause", "")]
    assert of_rcpt == ["recipient_not_accepted"], "said once"
    [ends] = [each["cause"] for each in log.entries if each["event"] == "policy_ends"]
    assert ends.endswith(f"bob.example.toml:3: this file ends in 5 days, after {soon}; the rest counts then")


@pytest.mark.in_process
async def test_a_large_mail_from_the_null_sender_gets_no_pad_but_the_next_level(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    both, large, small = 'levels = ["otp", "aes"]\n', mails.plain(body="x" * 40_000 + "\r\n"), mails.plain()
    replies = await through_alice(tmp_path / "bounces", kmes, sink, both, small, large, sender="")
    replies += await through_alice(tmp_path / "others", kmes, sink, both, large)
    assert [reply.code for reply in replies] == [250, 250, 250]
    assert protections(log) == ["otp", "aes", "otp"]


@pytest.mark.in_process
async def test_a_large_mail_from_the_null_sender_that_may_have_nothing_but_a_pad_is_refused_and_costs_no_key(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    large = mails.plain(body="x" * 40_000 + "\r\n")
    pads, cacheless = 'levels = ["otp"]\n', "prefetch = false\n"
    [reply] = await through_alice(tmp_path, kmes, sink, pads, large, sender="", kme_settings=cacheless)
    assert str(reply)[:9] == "552 5.2.3"
    assert any("max_bounce is 32768" in str(entry.get("cause", "")) for entry in log.entries)
    assert (sink.got, kmes.link.issued.total()) == ([], 0)


@pytest.mark.in_process
async def test_a_tag_in_the_subject_seals_what_else_would_leave_in_clear(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    policy = 'levels = ["plaintext"]\n[[when]]\nsubject_tag = "[seal]"\nlevels = ["aes"]\n'
    await through_alice(tmp_path, kmes, sink, policy, mails.plain(), mails.plain(subject="[seal] x"))
    assert protections(log) == ["plaintext", "aes"]


async def test_a_message_can_make_possible_what_the_envelope_alone_could_not(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    policy = 'levels = ["pqc+aes", "pqc"]\notherwise = "refuse"\n[[when]]\nsubject_tag = "[q]"\nlevels = ["aes"]\n'
    replies = await through_alice(tmp_path, kmes, sink, policy, mails.plain(subject="[q]"), mails.plain())
    assert [reply.code for reply in replies] == [250, 550]


@pytest.mark.in_process
async def test_a_message_is_read_once_for_all_recipients_and_not_at_all_without_such_rules(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[int] = []
    real = structure._Walk.entity

    def counted(self: Any, start: int, end: int, depth: int, **how: Any) -> None:
        walks.append(depth)
        real(self, start, end, depth, **how)

    monkeypatch.setattr(structure._Walk, "entity", counted)
    recipients = [f"u{number}@bob.example" for number in range(5)]
    policy = 'levels = ["aes"]\n[[when]]\nattachment_name = "*.exe"\nlevels = ["otp"]\n'
    await through_alice(tmp_path / "with", kmes, sink, policy, mails.random_attachment(1000), recipients=recipients)
    assert walks.count(0) == 1
    walks.clear()
    await through_alice(tmp_path / "without", kmes, sink, 'levels = ["aes"]\n', mails.plain(), recipients=recipients)
    assert not walks
