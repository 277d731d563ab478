"""``python -m benchmarks`` is ``python -m benchmarks.postgres``; SSH and Kubernetes: bench_ssh, bench_kubernetes."""

from __future__ import annotations

import sys

from benchmarks.postgres import main

if __name__ == "__main__":
    sys.exit(main())
