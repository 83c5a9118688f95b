"""The formats of mail: addresses, characters, header parameters, MIME and CMS; no file I/O.
Standard: RFC 5321, 5322, 2045, 5652; relay/FORMAT.md.
"""
