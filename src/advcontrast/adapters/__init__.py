"""Adapters for other libraries, one module each, which needs its library only when it is imported."""
