"""What a method will cost on a base model, before any work: counted on the meta device, without weights."""

from qpeft.planning.counting import plan
from qpeft.planning.result import Plan

__all__ = ["Plan", "plan"]
