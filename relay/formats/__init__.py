"""What stands in mail: addresses, characters, header parameters, MIME and CMS; nothing here reads or writes a file.
Standard: RFC 5321, 5322, 2045, 5652; relay/FORMAT.md.
"""
