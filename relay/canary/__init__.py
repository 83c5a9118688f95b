"""The canary: a small mail sent regularly to each peer's relay, through the whole path, and answered by a receipt.
Standard: relay/FORMAT.md, section 11; a receipt counts once, and only from the peer that was asked.

    message.py     the format of questions and receipts
    post.py        sends them, as ordinary mail
    asking.py      when a peer is asked
    box.py         handles mail to our canary address, which ends there

Questions and receipts are noted in the store (relay/store/canaries.py), for all relays of a site.
"""
