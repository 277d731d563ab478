"""``python -m benchmarks`` is ``python -m benchmarks.postgres``; that of SSH is ``python -m benchmarks.bench_ssh``."""

from __future__ import annotations

import sys

from benchmarks.postgres import main

if __name__ == "__main__":
    sys.exit(main())
