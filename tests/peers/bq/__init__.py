"""A faithful layer before bqemulator: what the emulator lacks of the real service, by the public documentation.

It runs in the emulator's own environment (tests/peers/bigquery.py makes and starts both), so nothing of it is imported
by the tests but gaps.py and names.py, which need the standard library alone.
"""
