"""The lines of the matrix by their names."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.faults.stage import Stage

Act = Callable[[Stage], Awaitable[None]]
ActOn = Callable[[Stage, str], Awaitable[None]]
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MariaDB"}
SERVERS = ("postgresql", "mysql")


class Line(NamedTuple):
    """What breaks, and the function that breaks it, which also says how."""

    name: str
    fault: str
    act: Act


LINES: dict[str, Line] = {}


def line(name: str, fault: str) -> Callable[[Act], Act]:
    """Make a function a line of the matrix."""

    def add(act: Act) -> Act:
        assert name not in LINES
        LINES[name] = Line(name, fault, act)
        return act

    return add


def for_each(dialects: tuple[str, ...], name: str, fault: str) -> Callable[[ActOn], None]:
    """Make a function one line for each of these databases."""

    def add(act: ActOn) -> None:
        for dialect in dialects:

            async def one(stage: Stage, dialect: str = dialect) -> None:
                await act(stage, dialect)

            line(f"{NAMES[dialect].lower()}-{name}", f"{NAMES[dialect]} {fault}")(one)

    return add


def times(number: int) -> str:
    """In words that fit."""
    return "once" if number == 1 else f"{number} times"
