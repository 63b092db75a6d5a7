"""One thread per process: tiny networks gain nothing from more, and on a busy machine lose most of their time to it."""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # read by torch when it is imported, which no test module has done yet
