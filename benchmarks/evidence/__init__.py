"""Experiments behind claims other than speed; each runs as ``python -m benchmarks.evidence.NAME``."""
