"""``python -m benchmarks`` is ``python -m benchmarks.postgres``: the one comparison there is so far."""

from __future__ import annotations

import sys

from benchmarks.postgres import main

if __name__ == "__main__":
    sys.exit(main())
