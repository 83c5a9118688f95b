"""What the two journeys are made of: plan, sealing, opening, deliveries, and the last look at what leaves.
Standard: relay/outgoing.py and relay/incoming.py, which say in which order.
"""
