"""Adapters for other libraries, one module each; a library is needed only when its module is imported."""
