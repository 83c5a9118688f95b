"""The milter listener: seals and opens mail inside the mail server, which keeps the mail and replaces its content.
Standard: the Sendmail milter protocol, version 6, as in Postfix and Sendmail; wire format by kilter-protocol.
"""
