"""TLS to a KME: names by SAN or CN, the KME ID, versions and ciphers; verification cannot be switched off.
Standard: ETSI GS QKD 014 V1.1.1, 5.1; real handshakes on localhost.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from relay.errors import ConfigError, KMEMisconfigured, KMEUnreachable
from relay.keys import OptimizedKMClient
from relay.keys.tls import TLSRules, client_context
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime


async def _accepted(certificates: Certificates, tls: ssl.SSLContext, rules: TLSRules) -> bool:
    async with (
        FakeKME(certificates, tls=tls) as kme,
        kme.client(tls=rules, timeout=3, retry_attempts=0) as client,
    ):
        try:
            await client.request_enc_keys("bob")
        except KMEMisconfigured:
            assert kme.requests == []  # it was not even asked
            assert client.accounts.totals()["issued"] == 0
            return False
        return True


CASES = [
    (["localhost"], "x", {}, True),
    (["elsewhere.example"], "localhost", {}, False),
    (["elsewhere.example"], "KME-A", {"kme_id": "KME-A", "name_from": "cn"}, True),
    (["elsewhere.example"], "KME-A", {"kme_id": "KME-A", "name_from": "either"}, True),
    (["elsewhere.example"], "KME-A", {"kme_id": "KME-A", "name_from": "san"}, False),
    (["KME-A"], "x", {"kme_id": "KME-A", "name_from": "san"}, True),
    (["localhost"], "KME-B", {"kme_id": "KME-A", "name_from": "either"}, False),
]


@pytest.mark.parametrize(("names", "common_name", "rules", "accepted"), CASES)
async def test_the_certificate_must_carry_the_name_that_is_checked_where_it_is_looked_for(
    certificates: Certificates, names: list[str], common_name: str, rules: dict[str, Any], accepted: bool
) -> None:
    tls = certificates.server_tls(*names, common_name=common_name)
    assert await _accepted(certificates, tls, TLSRules(**rules)) is accepted


async def test_a_certificate_with_another_name_says_which_settings_name_it(certificates: Certificates) -> None:
    cause = await _refused(certificates, certificates.server_tls("elsewhere.example"), TLSRules())
    assert "kme_id" in cause
    assert 'name_from = "cn"' in cause


async def test_a_kme_of_another_authority_is_not_spoken_to(certificates: Certificates) -> None:
    stranger = trustme.CA().issue_cert("localhost", common_name="KME-A")
    tls = certificates.server_tls("localhost")
    stranger.configure_cert(tls)
    rules = TLSRules(kme_id="KME-A", name_from="either")
    assert not await _accepted(certificates, tls, rules)


@contextmanager
def _refusing(tls: ssl.SSLContext) -> Iterator[str]:
    """A TLS server without asyncio, which sends its alert before it closes; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):  # aiohttp may try once more
                try:
                    connection, _address = listener.accept()
                except OSError:
                    return
                connection.settimeout(3)
                inside = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                with suppress(OSError):
                    inside.do_handshake()
                    inside.recv(1)
                # What the client sent already is read, lest a reset overtake the alert.
                with socket.socket(fileno=inside.detach()) as outside, suppress(OSError):
                    outside.settimeout(3)
                    outside.shutdown(socket.SHUT_WR)
                    while outside.recv(4096):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"https://localhost:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


async def _refused(certificates: Certificates, tls: ssl.SSLContext, rules: TLSRules) -> str:
    with _refusing(tls) as url:
        files = certificates.files
        async with OptimizedKMClient(url, **files, tls=rules, retry_attempts=0) as client:
            with pytest.raises(KMEMisconfigured) as error:
                await client.request_enc_keys("bob")
            assert client.accounts.totals()["issued"] == 0
            return str(error.value)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_kme_that_does_not_know_us_is_a_configuration_fault_and_burns_nothing(
    certificates: Certificates, version: ssl.TLSVersion
) -> None:
    only_others = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates.authority.issue_cert("localhost", common_name="KME-A").configure_cert(only_others)
    trustme.CA().configure_trust(only_others)
    only_others.verify_mode = ssl.CERT_REQUIRED
    only_others.minimum_version = only_others.maximum_version = version
    cause = await _refused(certificates, only_others, TLSRules())
    assert "is our certificate known there?" in cause


@pytest.mark.parametrize("call", ["status", "enc_keys", "dec_keys"])
async def test_a_kme_that_closes_after_the_handshake_of_tls_1_3_since_it_does_not_know_us_has_spent_no_key(
    certificates: Certificates, time: FakeTime, call: str
) -> None:
    """Its alert may be lost, since the request was written before it came."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates.authority.issue_cert("localhost", common_name="KME-A").configure_cert(tls)
    trustme.CA().configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    async with FakeKME(certificates, tls=tls) as kme, kme.client(timing=time.timing) as client:
        with pytest.raises(KMEUnreachable, match=r"is our certificate known there\?"):
            if call == "status":
                await client.check_key_status("bob")
            elif call == "enc_keys":
                await client.request_enc_keys("bob", number=7)
            else:
                await client.request_dec_keys("alice", ["a"])
        assert client.accounts.totals()["issued"] == 0


def test_no_version_below_1_2_is_spoken(certificates: Certificates) -> None:
    assert client_context(**certificates.files).minimum_version is ssl.TLSVersion.TLSv1_2


async def test_an_old_suite_can_be_allowed(certificates: Certificates) -> None:
    tls = certificates.server_tls("localhost")
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers("ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA")
    assert await _accepted(certificates, tls, TLSRules(ciphers="ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA"))


@pytest.mark.parametrize("ciphers", [None, "ALL:aNULL:eNULL:@SECLEVEL=0", "DEFAULT"])
@pytest.mark.parametrize("kme_id", [None, "KME-A"])
def test_no_setting_switches_verification_off(
    certificates: Certificates, ciphers: str | None, kme_id: str | None
) -> None:
    rules = TLSRules(ciphers=ciphers, kme_id=kme_id)
    context = client_context(**certificates.files, rules=rules)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname or context.sslobject_class is not ssl.SSLObject
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert not any("NULL" in suite["name"] or "ADH" in suite["name"] for suite in context.get_ciphers())


def test_ciphers_that_openssl_does_not_know_are_a_configuration_error(certificates: Certificates) -> None:
    with pytest.raises(ConfigError, match="NOT-A-CIPHER"):
        client_context(**certificates.files, rules=TLSRules(ciphers="NOT-A-CIPHER"))


def test_files_that_are_no_certificates_are_a_configuration_error(certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "rubbish.pem").write_text("this is not PEM")
    with pytest.raises(ConfigError, match=r"rubbish\.pem"):
        client_context(**(certificates.files | {"certificate": tmp_path / "rubbish.pem"}))


@pytest.mark.parametrize("call", ["status", "enc_keys", "dec_keys"])
async def test_a_refusal_without_a_word_says_what_to_ask_the_operator_of_the_kme(kme: FakeKME, call: str) -> None:
    kme.misbehave(call, "http", times=None, code=401)
    async with kme.client(retry_attempts=0) as client:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "status": lambda: client.check_key_status("bob"),
            "enc_keys": lambda: client.request_enc_keys("bob"),
            "dec_keys": lambda: client.request_dec_keys("bob", ["a"]),
        }
        with pytest.raises(
            KMEMisconfigured, match=r"HTTP 401: empty; does the KME's operator know our certificate, and SAE bob\?"
        ):
            await calls[call]()


def test_a_typing_error_in_ciphers_is_named_as_it_was_typed(certificates: Certificates) -> None:
    with pytest.raises(
        ConfigError, match=r"^ciphers \(tls_ciphers in relay\.toml\): OpenSSL knows none of 'AES256-GMC'"
    ):
        OptimizedKMClient("https://localhost", tls=TLSRules(ciphers="AES256-GMC"), **certificates.files)
