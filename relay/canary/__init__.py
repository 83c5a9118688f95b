"""The canary: a small mail goes to each peer's relay now and then, through the whole path, and comes back as a receipt.
Standard: relay/FORMAT.md, section 11; a receipt counts once, and only from the very peer that was asked.

    message.py     what a question and a receipt look like
    post.py        sends them, as ordinary mail of ours
    asking.py      when a peer is asked
    box.py         what becomes of mail that comes for our canary address: it ends there

What was asked and has come back is in the store (relay/store/canaries.py), for all relays of a site.
"""
