"""Evaluation protocols as data, and the function that runs them on disjoint splits."""

from .definition import Protocol as Protocol
from .frozen import unchanged as unchanged
from .presets import PROTOCOLS as PROTOCOLS
from .presets import protocol as protocol
from .run import ProtocolResult as ProtocolResult
from .run import run_protocol as run_protocol

__all__ = [
    "PROTOCOLS",
    "Protocol",
    "ProtocolResult",
    "protocol",
    "run_protocol",
    "unchanged",
]
