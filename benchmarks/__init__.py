"""Measurements of the library: how fast it is (``timing``), and what else is claimed of it (``evidence``)."""
