"""What became of a mail: the fate of each recipient, counted, and written down for whom it concerns.
Standard: a mail has one outcome, and every part that speaks of it reads it here.
"""
