"""Creates a site from a few answers: relay.toml, policies, identity, secret, the KME's files, and Postfix beside it.
An administrator's files are never lost: an existing file is used unchanged, or kept beside the new one.

answers.py contains the answers, site.py carries them out, mail_server.py changes Postfix and undoes it.
"""
