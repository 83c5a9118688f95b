"""The outcome of a mail: the fate of each recipient, counted and recorded.
All parts that report an outcome take it from here.
"""
