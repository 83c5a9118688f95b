"""The milter inside real Postfix and packet by packet.
Standard: Sendmail milter protocol 6; what Postfix keeps is octet for octet what the recipes made.
"""
