"""What a line of the matrix came to."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Result:
    """`missing` says why the line could not be run here."""

    name: str
    fault: str
    how: str = ""
    made: int = 0
    answered: int = 0
    found: int = 0
    right: int = 0
    worst_ms: float = 0.0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    missing: str = ""

    @property
    def good(self) -> bool:
        """Whether every answered call has its row and the right tokens, and nothing else was wrong."""
        if self.missing:
            return True
        return 0 < self.answered == self.found == self.right and not self.problems

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "good": self.good}
