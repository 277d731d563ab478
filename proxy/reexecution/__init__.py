"""Running a recorded PostgreSQL session again on a sandbox, and saying what came out differently.

run.py follows the recording message by message on both sides; statements.py reads what a text tells about comparing;
compare.py finds the differences, report.py shows them; emulate.py holds a whole run in one transaction; command.py is
what the command line calls. The protocol's part is in protocols/postgres: recorded.py, outcomes.py, sandbox.py.
"""
