"""Runs scenarios in the clients' environment: PYTHON -m tests.peers.bq.worker MODULE, one JSON line each way.

{"scenario": name, ...} comes in, the function of that name is called with the rest, {"error": null or its traceback}
goes out. The clients' packages take seconds to import: one process does it once. What scenarios print goes to stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import traceback


def main(name: str) -> None:
    """Answer until stdin ends."""
    module = importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        error = None
        try:
            with contextlib.redirect_stdout(sys.stderr):
                getattr(module, asked.pop("scenario"))(**asked)
        except Exception:  # it is the answer: the test fails with it
            error = traceback.format_exc()
        print(json.dumps({"error": error}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
