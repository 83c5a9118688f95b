"""What the tests stand on: real sites in temporary directories, and SMTP servers that remember and misbehave.
Standard: free ports only, nothing outlives its test, waiting is for an event and never for a time.
"""
