"""The parts of the two journeys: plan, sealing, opening, deliveries, tripwire.
Standard: relay/outgoing.py and relay/incoming.py have the order.
"""
