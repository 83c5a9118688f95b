"""Canaries between two sites: they come back through everything, and whatever is forged or replayed counts for nothing."""
