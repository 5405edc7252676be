"""A line of blocks that shows how a number went."""

from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """A block for each value, from 0 to the highest; a space where there is nothing."""
    highest = max(values, default=0.0)
    if not highest > 0:
        return " " * len(values)
    return "".join(" " if value <= 0 else _BLOCKS[int(value / highest * 7.999)] for value in values)
