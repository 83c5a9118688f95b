"""Makes a site out of a few answers: relay.toml, policies, identity, secret, the KME's files, and Postfix beside it.
What an administrator has written stays: a file that is there is used as it is, or kept beside the new one.

answers.py has what is asked for, site.py carries it out, mail_server.py changes Postfix and takes that back.
"""
