"""What the gate keeps besides tapes: tokens, locks and approvals, in one SQLite file (database.py, schema.py)."""
