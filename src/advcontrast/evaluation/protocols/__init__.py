"""Evaluation protocols as data, and the function that runs them on disjoint splits."""

from .definition import Protocol
from .presets import PROTOCOLS, protocol
from .run import ProtocolResult, run_protocol, unchanged

__all__ = ["PROTOCOLS", "Protocol", "ProtocolResult", "protocol", "run_protocol", "unchanged"]
