"""`python -m relay` is the same as `qumail-relay`.
Standard: see relay/cli.
"""

from relay.cli import main

if __name__ == "__main__":
    main()
