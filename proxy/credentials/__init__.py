"""What the gate logs in to a target with: from the configuration's references (static.py)."""
