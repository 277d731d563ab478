"""What may pass: the rules (rules.py) and what a statement touches (sql.py)."""
