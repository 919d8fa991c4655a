"""Tests compute on one thread: their matrices are small, and threads mostly wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch are imported
