"""The development key servers: KM1 (Alice's) and KM2 (Bob's) over a simulated QKD link, not a quantum one.
Standard: ETSI GS QKD 014 V1.1.1, all three calls; each module names its sections.

Nothing here is quantum: keys come from the operating system's random generator. The status reply and the
log say so. The servers are for development, tests, benchmarks and demonstrations, and listen on
loopback only. Each records its requests and the fate of its keys, and misbehaves on command as real
KMEs were seen to do.

| read | for |
|---|---|
| link.py | number of keys, arrival at the other side, fate of each key |
| requests.py | parsing of requests, and all error texts |
| server.py | one KME: authentication, the three calls, their answers |
| faults.py | injectable faults |
| servers.py | both servers in one process, their addresses |
| certificates.py | the certificate authority, and which SAE belongs to which KME |

SAE "2" (Alice) is attached to KM1, SAE "1" (Bob) to KM2. By hand, in the state directory::

    curl --cacert ca.pem --cert sae-2.pem --key sae-2.key https://localhost:13000/api/v1/keys/1/enc_keys
    curl --cacert ca.pem --cert sae-1.pem --key sae-1.key \
        'https://localhost:14000/api/v1/keys/2/dec_keys?key_ID=...'
"""

from relay.kme.faults import KMERequest, Misbehaviour
from relay.kme.link import LinkSettings, SimulatedLink
from relay.kme.server import DevelopmentKME
from relay.kme.servers import DevelopmentKMEs

__all__ = ["DevelopmentKME", "DevelopmentKMEs", "KMERequest", "LinkSettings", "Misbehaviour", "SimulatedLink"]
