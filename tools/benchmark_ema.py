"""Measure what an average costs: the command ``python -m benchmarks``, under the name that it has among the tools."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.__main__ import main

if __name__ == '__main__':
    main()
