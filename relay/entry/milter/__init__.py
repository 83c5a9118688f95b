"""The milter listener: seals and opens mail inside the mail server, which keeps the mail and gets other content for it.
Standard: the Sendmail milter protocol, version 6, as Postfix and Sendmail speak it; its wire format by kilter-protocol.
"""
