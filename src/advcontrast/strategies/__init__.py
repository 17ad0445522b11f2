"""Training strategies, one paper a file: modules whose forward pass returns a loss."""

from .acl import ACLOutput as ACLOutput
from .acl import ACLTrainer as ACLTrainer

__all__ = ["ACLOutput", "ACLTrainer"]
