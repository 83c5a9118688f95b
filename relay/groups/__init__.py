"""Groups of people from a directory (LDAP), written into groups.toml by `qumail-relay groups fetch`.
No mail waits for a directory: what counts is the file, edited by a command as an administrator would.

    ldap.py     asks the directory, by ldapsearch(1)
    members.py  the addresses of a group, and of the groups within it
    written.py  their place in groups.toml, and what an edit would lose
"""
