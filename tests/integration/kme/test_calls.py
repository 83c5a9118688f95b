"""The calls of the development KMEs as a client sees them: status, fresh keys, keys by their IDs, several slaves.
Standard: ETSI GS QKD 014 V1.1.1; the names of the tests say what it, or these servers, promise.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.kme.clients import NOT_FOUND, NOT_MULTIPLE, NOT_SUPPORTED, Site, ids, running


async def test_status_has_every_field_of_the_standard_and_says_that_it_is_not_quantum(site: Site) -> None:
    status = (await site.alice.get("1/status")).body
    extension = status.pop("status_extension")
    assert status == {
        "source_KME_ID": "KM1",
        "target_KME_ID": "KM2",
        "master_SAE_ID": "2",
        "slave_SAE_ID": "1",
        "key_size": 256,
        "stored_key_count": 10_000,
        "max_key_count": 10_000,
        "max_key_per_request": 128,
        "max_key_size": 65_536,
        "min_key_size": 64,
        "max_SAE_ID_count": 2,
    }
    assert extension["quantum"] is False
    assert "operating system's random generator" in extension["note"]


async def test_status_at_the_other_end_is_the_mirror_image(site: Site) -> None:
    status = (await site.bob.get("2/status")).body
    assert (status["source_KME_ID"], status["target_KME_ID"]) == ("KM2", "KM1")
    assert (status["master_SAE_ID"], status["slave_SAE_ID"]) == ("1", "2")


async def test_status_tells_the_settings(tmp_path: Path) -> None:
    settings = {
        "key_size": 512,
        "stored_key_limit": 50,
        "starting_fill": 0.5,
        "max_key_per_request": 3,
        "max_key_size": 1024,
        "min_key_size": 128,
        "max_sae_id_count": 0,
    }
    async with running(tmp_path, **settings) as site:
        status = (await site.alice.get("1/status")).body
    assert (status["key_size"], status["min_key_size"], status["max_key_size"]) == (512, 128, 1024)
    assert (status["stored_key_count"], status["max_key_count"]) == (25, 50)
    assert (status["max_key_per_request"], status["max_SAE_ID_count"]) == (3, 0)


async def test_get_without_parameters_gives_one_key_of_the_default_size(site: Site) -> None:
    (key,) = (await site.alice.get("1/enc_keys")).keys.values()
    assert len(key) == 32


async def test_post_of_an_empty_object_gives_one_key_of_the_default_size(site: Site) -> None:
    (key,) = (await site.alice.post("1/enc_keys", {})).keys.values()
    assert len(key) == 32


@pytest.mark.parametrize(("number", "size"), [(1, 64), (3, 256), (128, 8192), (2, 65_536)])
async def test_number_and_size_in_bits_mean_the_same_by_get_and_by_post(tmp_path: Path, number: int, size: int) -> None:
    async with running(tmp_path) as site:
        got = (await site.alice.get("1/enc_keys", number=number, size=size)).keys
        posted = (await site.alice.post("1/enc_keys", {"number": number, "size": size})).keys
    for keys in (got, posted):
        assert [len(key) * 8 for key in keys.values()] == [size] * number
    assert not set(got) & set(posted)
    assert len({*got.values(), *posted.values()}) == 2 * number


async def test_key_answers_are_not_to_be_cached(site: Site) -> None:
    assert (await site.alice.get("1/enc_keys")).headers["Cache-Control"] == "no-store"


async def test_optional_extensions_and_empty_lists_change_nothing(site: Site) -> None:
    answer = await site.alice.post(
        "1/enc_keys",
        {
            "number": 2,
            "size": 128,
            "additional_slave_SAE_IDs": [],
            "extension_mandatory": [],
            "extension_optional": [{"vendor_route": "north"}],
        },
    )
    assert [len(key) for key in answer.keys.values()] == [16, 16]


async def test_a_mandatory_extension_is_refused_by_name(site: Site) -> None:
    answer = await site.alice.post("1/enc_keys", {"extension_mandatory": [{"vendor_route": "north"}]})
    assert (answer.status, answer.message) == (400, NOT_SUPPORTED)
    assert answer.body["details"] == [{"extension_mandatory_unsupported": "vendor_route is not supported"}]


async def test_even_an_empty_mandatory_extension_is_refused(site: Site) -> None:
    answer = await site.alice.post("1/enc_keys", {"extension_mandatory": [{}]})
    assert (answer.status, answer.message) == (400, NOT_SUPPORTED)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"number": 0}, "number shall be from 1 to 128 (max_key_per_request)"),
        ({"number": -1}, "number shall be from 1 to 128 (max_key_per_request)"),
        ({"number": 129}, "number shall be from 1 to 128 (max_key_per_request)"),
        ({"number": "3"}, "number shall be an integer"),
        ({"number": 1.0}, "number shall be an integer"),
        ({"number": True}, "number shall be an integer"),
        ({"number": None}, "number shall be an integer"),
        ({"size": 257}, NOT_MULTIPLE),
        ({"size": 4}, NOT_MULTIPLE),
        ({"size": 0}, "size shall be from 64 to 65536 (min_key_size and max_key_size)"),
        ({"size": -8}, "size shall be from 64 to 65536 (min_key_size and max_key_size)"),
        ({"size": 56}, "size shall be from 64 to 65536 (min_key_size and max_key_size)"),
        ({"size": 65_544}, "size shall be from 64 to 65536 (min_key_size and max_key_size)"),
        ({"size": "256"}, "size shall be an integer"),
        ({"size": [256]}, "size shall be an integer"),
        ({"additional_slave_SAE_IDs": "1"}, "additional_slave_SAE_IDs shall be an array of strings"),
        ({"additional_slave_SAE_IDs": [1]}, "additional_slave_SAE_IDs shall be an array of strings"),
        (
            {"additional_slave_SAE_IDs": ["1", "2", "2"]},
            "number of additional_slave_SAE_IDs shall be from 0 to 2 (max_SAE_ID_count)",
        ),
        ({"additional_slave_SAE_IDs": ["9"]}, "one or more additional_slave_SAE_IDs are not known"),
        ({"extension_mandatory": {}}, "extension_mandatory shall be an array of objects"),
        ({"extension_mandatory": ["x"]}, "extension_mandatory shall be an array of objects"),
        ({"extension_optional": "x"}, "extension_optional shall be an array of objects"),
        (
            {"Number": 1},
            (
                "unknown parameters; known here: number, size, additional_slave_SAE_IDs, "
                "extension_mandatory, extension_optional"
            ),
        ),
    ],
)
async def test_a_faulty_key_request_is_refused_with_its_reason_and_takes_no_key(
    site: Site, body: dict[str, Any], message: str
) -> None:
    answer = await site.alice.post("1/enc_keys", body)
    assert (answer.status, answer.message) == (400, message)
    assert site.kmes.link.stored_key_count == 10_000


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("size=257", NOT_MULTIPLE),
        ("size=32", "size shall be from 64 to 65536 (min_key_size and max_key_size)"),
        ("number=0", "number shall be from 1 to 128 (max_key_per_request)"),
        ("number=129", "number shall be from 1 to 128 (max_key_per_request)"),
        ("number=", "number shall be an integer"),
        ("number=-1", "number shall be an integer"),
        ("number=1.0", "number shall be an integer"),
        ("number=%D9%A3", "number shall be an integer"),
        ("number=99999999999999999999", "number shall be an integer"),
        ("number=1&number=2", "a parameter is given more than once"),
        ("key_ID=1", "unknown parameters; known here: number, size"),
        ("additional_slave_SAE_IDs=1", "unknown parameters; known here: number, size"),
    ],
)
async def test_a_faulty_query_is_refused_with_its_reason(site: Site, query: str, message: str) -> None:
    answer = await site.alice.get(f"1/enc_keys?{query}")
    assert (answer.status, answer.message) == (400, message)


@pytest.mark.parametrize("call", ["1/status?number=1", "1/dec_keys?number=1"])
async def test_calls_refuse_parameters_that_are_not_theirs(site: Site, call: str) -> None:
    answer = await site.alice.get(call)
    assert answer.status == 400
    assert answer.message.startswith("unknown parameters")


async def test_a_post_has_its_parameters_in_its_body_only(site: Site) -> None:
    answer = await site.alice.post("1/enc_keys?number=2", {})
    assert (answer.status, answer.message) == (400, "unknown parameters; known here: none")


async def test_the_slave_gets_the_masters_keys_in_the_order_that_it_asks_for(site: Site) -> None:
    issued = (await site.alice.post("1/enc_keys", {"number": 5, "size": 512})).keys
    wanted = list(reversed(issued))
    delivered = (await site.bob.post("2/dec_keys", ids(*wanted))).keys
    assert list(delivered) == wanted
    assert delivered == issued


async def test_the_other_direction_works_too(site: Site) -> None:
    issued = (await site.bob.post("2/enc_keys", {"number": 2})).keys
    assert (await site.alice.post("1/dec_keys", ids(*issued))).keys == issued


async def test_get_fetches_exactly_one_key(site: Site) -> None:
    issued = (await site.alice.get("1/enc_keys", number=2)).keys
    first, second = issued
    assert (await site.bob.get("2/dec_keys", key_ID=first)).keys == {first: issued[first]}
    both = await site.bob.get(f"2/dec_keys?key_ID={second}&key_ID={second}")
    assert (both.status, both.message) == (400, "a parameter is given more than once")
    none = await site.bob.get("2/dec_keys")
    assert (none.status, none.message) == (400, "key_ID shall be a string of at least one character")
    assert (await site.bob.get("2/dec_keys", key_ID=second)).keys == {second: issued[second]}


async def test_a_key_is_delivered_once(site: Site) -> None:
    (key_id,) = (await site.alice.get("1/enc_keys")).keys
    assert (await site.bob.post("2/dec_keys", ids(key_id))).status == 200
    again = await site.bob.post("2/dec_keys", ids(key_id))
    assert (again.status, again.message) == (400, NOT_FOUND)
    assert again.body["details"] == [{"key_ID": key_id}]


async def test_one_unknown_id_costs_none_of_the_other_keys(site: Site) -> None:
    issued = (await site.alice.get("1/enc_keys", number=2)).keys
    mixed = await site.bob.post("2/dec_keys", ids(*issued, "no-such-key"))
    assert (mixed.status, mixed.message) == (400, NOT_FOUND)
    assert mixed.body["details"] == [{"key_ID": "no-such-key"}]
    assert (await site.bob.post("2/dec_keys", ids(*issued))).keys == issued


async def test_simultaneous_requests_for_a_key_deliver_it_once(site: Site) -> None:
    (key_id,) = (await site.alice.get("1/enc_keys")).keys
    answers = await asyncio.gather(*(site.bob.post("2/dec_keys", ids(key_id)) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7


async def test_extensions_of_key_ids_are_accepted(site: Site) -> None:
    issued = (await site.alice.get("1/enc_keys")).keys
    entries = [{"key_ID": key_id, "key_ID_extension": {"future": 1}} for key_id in issued]
    answer = await site.bob.post("2/dec_keys", {"key_IDs": entries, "key_IDs_extension": {"future": 2}})
    assert answer.keys == issued


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "key_IDs shall be an array of objects"),
        ({"key_IDs": None}, "key_IDs shall be an array of objects"),
        ({"key_IDs": ["a"]}, "key_IDs shall be an array of objects"),
        ({"key_IDs": []}, "number of key_IDs shall be from 1 to 128 (max_key_per_request)"),
        (ids(*map(str, range(129))), "number of key_IDs shall be from 1 to 128 (max_key_per_request)"),
        (ids("a", "a"), "key_IDs shall not name a key twice"),
        ({"key_IDs": [{}]}, "key_ID shall be a string of at least one character"),
        ({"key_IDs": [{"key_ID": ""}]}, "key_ID shall be a string of at least one character"),
        ({"key_IDs": [{"key_ID": 7}]}, "key_ID shall be a string of at least one character"),
        ({"key_IDs": [{"key_id": "a"}]}, "unknown parameters; known here: key_ID, key_ID_extension"),
        ({"key_IDs": [{"key_ID": "a", "key_ID_extension": 1}]}, "key_ID_extension shall be an object"),
        ({**ids("a"), "key_IDs_extension": []}, "key_IDs_extension shall be an object"),
        ({**ids("a"), "number": 1}, "unknown parameters; known here: key_IDs, key_IDs_extension"),
        (ids("\ud800"), NOT_FOUND),
    ],
)
async def test_a_faulty_list_of_key_ids_is_refused_with_its_reason(
    site: Site, body: dict[str, Any], message: str
) -> None:
    answer = await site.bob.post("2/dec_keys", body)
    assert (answer.status, answer.message) == (400, message)


async def test_each_named_slave_gets_the_key_once(site: Site) -> None:
    asked = {"additional_slave_SAE_IDs": ["2"]}
    issued = (await site.alice.post("1/enc_keys", asked)).keys
    for slave in (site.bob, site.alice):
        assert (await slave.post("2/dec_keys", ids(*issued))).keys == issued
    for slave in (site.bob, site.alice):
        again = await slave.post("2/dec_keys", ids(*issued))
        assert (again.status, again.message) == (400, NOT_FOUND)


async def test_a_slave_that_has_had_the_key_is_told_not_found_while_another_still_waits(site: Site) -> None:
    issued = (await site.alice.post("1/enc_keys", {"additional_slave_SAE_IDs": ["2"]})).keys
    await site.bob.post("2/dec_keys", ids(*issued))
    assert (await site.bob.post("2/dec_keys", ids(*issued))).message == NOT_FOUND
    assert (await site.alice.post("2/dec_keys", ids(*issued))).keys == issued


async def test_naming_the_slave_again_as_additional_gives_it_no_second_copy(site: Site) -> None:
    issued = (await site.alice.post("1/enc_keys", {"additional_slave_SAE_IDs": ["1"]})).keys
    assert (await site.bob.post("2/dec_keys", ids(*issued))).keys == issued
    assert (await site.bob.post("2/dec_keys", ids(*issued))).message == NOT_FOUND


async def test_unknown_additional_slaves_are_named_in_the_refusal(site: Site) -> None:
    answer = await site.alice.post("1/enc_keys", {"additional_slave_SAE_IDs": ["1", "9"]})
    assert answer.status == 400
    assert answer.body["details"] == [{"additional_slave_SAE_ID": "9"}]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_gets_a_key_from_km1_and_fetches_it_from_km2(site: Site) -> None:
    async def curl(identity: str, *arguments: str) -> Any:
        command = ["curl", "-sS", "--fail", "--noproxy", "*", "--cacert", "ca.pem"]
        command += ["--cert", f"{identity}.pem", "--key", f"{identity}.key", *arguments]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=site.kmes.state_dir, capture_output=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first, second = site.kmes.urls
    issued = await curl("sae-2", f"{first}/api/v1/keys/1/enc_keys?number=2")
    wanted = json.dumps({"key_IDs": [{"key_ID": key["key_ID"]} for key in issued["keys"]]})
    header = ("-H", "Content-Type: application/json")
    assert await curl("sae-1", *header, "-d", wanted, f"{second}/api/v1/keys/2/dec_keys") == issued
