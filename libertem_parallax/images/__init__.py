"""From sums to images."""

from .finish import Finish

__all__ = ["Finish"]
