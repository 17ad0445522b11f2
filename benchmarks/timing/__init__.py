"""Speed and memory compared with reference formulations and other libraries; see ``python -m benchmarks.run``."""
