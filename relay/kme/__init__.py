"""The development key servers: KM1 (Alice's) and KM2 (Bob's) over a simulated QKD link, not a quantum one.
Standard: ETSI GS QKD 014 V1.1.1, all three calls; each module here names the sections that it answers for.

Nothing here is quantum: keys come from the operating system's random generator, and the status reply,
the log and this line say so. They are for development, tests, benchmarks and demonstrations, and listen on
loopback only. Each remembers what it was asked and what became of its keys, and misbehaves on command
as real KMEs were seen to do.

| read | for |
|---|---|
| link.py | how many keys there are, when they arrive at the other side, what became of each |
| requests.py | what is asked for, and every text that refuses it |
| server.py | one KME: who asks, the three calls, their answers |
| faults.py | what it can be told to do wrong |
| servers.py | both in one process, their addresses |
| certificates.py | the certificate authority, and who may speak to whom |

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
