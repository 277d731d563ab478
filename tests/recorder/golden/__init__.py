"""Golden files of the tape format, version 1, and the script that made them."""
