"""Measurements of speed and memory; each module runs as ``python -m benchmarks.NAME``."""

import os

# Before torch is loaded: its profiler otherwise reports every start on standard error.
os.environ.setdefault("KINETO_LOG_LEVEL", "9")
