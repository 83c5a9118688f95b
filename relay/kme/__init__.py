"""The development key servers: KM1 (Alice's) and KM2 (Bob's) over a simulated QKD link, not a quantum one.
Standard: ETSI GS QKD 014 V1.1.1, all three calls; each module here names the sections that it answers for.

Nothing here is quantum: keys come from the operating system's random generator, and the status reply,
the log and this line say so. They are for development, tests and demonstrations, and listen on loopback only.

| read | for |
|---|---|
| link.py | how many keys there are, when they arrive at the other side, when they are destroyed |
| api.py | the three calls: what is asked, what is answered, every error text |
| certificates.py | the certificate authority, and who may speak to whom |
| servers.py | both servers in one process, their addresses |
| files.py | how files are written so that a crash leaves none half-written |

SAE "2" (Alice) is attached to KM1, SAE "1" (Bob) to KM2. By hand, in the state directory::

    curl --cacert ca.pem --cert sae-2.pem --key sae-2.key https://localhost:13000/api/v1/keys/1/enc_keys
    curl --cacert ca.pem --cert sae-1.pem --key sae-1.key \
        'https://localhost:14000/api/v1/keys/2/dec_keys?key_ID=...'
"""

from relay.kme.link import LinkSettings, SimulatedLink
from relay.kme.servers import DevelopmentKMEs

__all__ = ["DevelopmentKMEs", "LinkSettings", "SimulatedLink"]
