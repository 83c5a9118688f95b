"""Files and who may read or write them: rights, permissions, stamps that tell a change, TOML.
Standard: a file that cannot be looked at is not gone; what root does follows no link of somebody else.
"""
