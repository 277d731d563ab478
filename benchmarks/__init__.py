"""Measurements: side by side with direct connections and with peers, in one run, as ratios (README.md)."""
