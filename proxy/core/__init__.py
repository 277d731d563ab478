"""The waist: the values that cross it, the session that decides, and the few services a protocol may use."""
