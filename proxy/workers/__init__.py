"""Several worker processes on the same addresses: a supervisor that accepts, and workers that serve.

supervisor.py is the process that the operator started: it reads and checks the configuration, holds the state
directory, listens, owns the admin socket, and hands every connection to the worker with the fewest. crew.py starts
the workers, restarts those that die, and counts what must be counted once. worker.py is one of them: a gateway
without listeners, with its own rules, recorder and database connection. line.py is the private line between the two.

A connection costs the supervisor one accept and one descriptor sent (unix(7), SCM_RIGHTS); the user's bytes never
pass through it. SO_REUSEPORT, which needs no such hand, spreads by a hash: unevenly where connections are few and
long, and without a place where they could be counted.

Deliberately left out: moving a session to another worker. A worker that dies takes its sessions with it.
"""
