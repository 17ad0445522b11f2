"""Measurements of the library: its speed (``timing``), and the evidence for other claims (``evidence``)."""
