"""The attacks that somebody on the wire, an outsider or a peer may try, one readable scenario each.
Standard: the attacker has what the wire shows, guesses every octet of the mail besides, and sends what they like.
"""
