"""Tests of advcontrast, on one thread in each process, since pytest-xdist starts a process for each core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, which comes later
