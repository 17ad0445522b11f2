"""Connections to other libraries, one file each. Each needs its library when it is imported, and only then."""
