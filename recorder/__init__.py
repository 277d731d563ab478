"""The recorder: tapes, their format, seal, reader, player. A leaf: nothing of the proxy is imported here."""
