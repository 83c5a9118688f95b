"""S/MIME with other products: other people's certificates, this site's own, and what both may be used for.
Standard: RFC 8551 (messages), RFC 8550 (certificates).

| read | for |
|---|---|
| usable.py | whom a certificate names, and whether it may be sealed to |
| directory.py | the certificates of others, by address or domain |
| own.py | this site's certificates and private keys |
| importing.py | certificates out of files of any kind |
| sealing.py, enveloping.py | mail out at level smime: signed, then encrypted to one certificate |
| findings.py | what `check` says, and what ends soon |
| offers.py | certificates that came with signed mail, until they are accepted |
| reading.py | a message that arrives: opened, verified, put together |
| decrypting.py, verifying.py, trust.py | its parts: content keys, signatures, whose certificate counts for whom |
"""

from relay.smime.directory import CertificateDirectory, Found
from relay.smime.own import OwnKey, load_own
from relay.smime.usable import addresses_of, domains_of, named_by, unusable_for_sealing

__all__ = [
    "CertificateDirectory",
    "Found",
    "OwnKey",
    "addresses_of",
    "domains_of",
    "load_own",
    "named_by",
    "unusable_for_sealing",
]
