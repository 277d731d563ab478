"""Tests of the vault: its states, its upload, its stores, its end of tapes."""
