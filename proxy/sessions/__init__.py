"""Recorded sessions for operators: listed, searched, shown; and the index of them kept up to date.

commands.py is what the command line does, text.py how it looks, upkeep.py what a running gateway does
beside its work.
"""
