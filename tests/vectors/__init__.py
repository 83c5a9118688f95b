"""Test vectors of the message format, one file a case; make.py writes them, tests/integration/vectors/test_vectors.py runs them.
Standard: relay/FORMAT.md; the files need nothing but the keys beside them, so that others can use them too.
"""
