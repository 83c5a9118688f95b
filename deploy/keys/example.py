"""The usage example of the QuMail document: a key of KM1 comes out at KM2. `python -m quantum_keys.kme` runs beside it.
Standard: ETSI GS QKD 014 V1.1.1, its three calls.
"""

from __future__ import annotations

import asyncio

from quantum_keys import ConfigError, KeyUnavailable, get_optimized_km_clients


async def main() -> None:
    """Asks both KMEs. Exits with 1 and the cause where there is no key."""
    try:
        km1_client, km2_client = clients = get_optimized_km_clients()
        async with clients:
            status = await km1_client.check_key_status(1)
            print(f"{status.source_KME_ID} has {status.stored_key_count} keys of {status.key_size} bits for SAE 1")
            keys = await km1_client.request_enc_keys(1, number=1, size=256)
            [same] = await km2_client.request_dec_keys(2, [keys[0].key_ID])
    except (ConfigError, KeyUnavailable) as error:
        raise SystemExit(f"no key: {error}") from error
    print("the same key at both sides:", same == keys[0])


if __name__ == "__main__":
    asyncio.run(main())
