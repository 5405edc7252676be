"""The parameters of a query string, each read once and checked; what is wrong says what is right."""

from collections.abc import Collection, Iterable
from typing import NoReturn

from arbstr_asgi.errors import RequestError, quotable

Pairs = Iterable[tuple[str, str]]

_LONGEST_NUMBER = 18  # digits, so that each fits 64 bits


class QueryParams:
    """Names and values; a `RequestError` (400) names the parameter and never quotes its value."""

    def __init__(self, pairs: Pairs, known: Collection[str]) -> None:
        self._given: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                valid = f"valid are {', '.join(sorted(known))}" if known else "there are none here"
                invalid(quotable(name), f"There is no such parameter; {valid}.")
            if name in self._given:
                invalid(name, f"{name} may be given once.")
            self._given[name] = value

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def raw(self, name: str) -> str | None:
        """The value as it came."""
        return self._given.get(name)

    def text(self, name: str, longest: int) -> str | None:
        """A value that a column of so many characters can hold."""
        value = self._given.get(name)
        if value is not None and (len(value) > longest or "\0" in value):
            invalid(name, f"{name} must have at most {longest} characters, and no NUL.")
        return value

    def choice(self, name: str, valid: Collection[str]) -> str | None:
        """One of these words."""
        value = self._given.get(name)
        if value is not None and value not in valid:
            invalid(name, f"{name} must be one of {', '.join(valid)}.")
        return value

    def flag(self, name: str) -> bool | None:
        """`true` or `false`."""
        value = self.choice(name, ("true", "false"))
        return None if value is None else value == "true"

    def number(self, name: str, lowest: int, highest: int | None = None) -> int | None:
        """A whole number between these two, in ASCII digits."""
        value = self._given.get(name)
        if value is None:
            return None
        number = int(value) if value.isascii() and value.isdigit() and len(value) <= _LONGEST_NUMBER else -1
        if number < lowest or (highest is not None and number > highest):
            invalid(
                name, f"{name} must be a whole number from {lowest} {'on' if highest is None else f'to {highest}'}."
            )
        return number


def invalid(name: str, message: str) -> NoReturn:
    """Raises the RequestError that says what is wrong with a parameter."""
    raise RequestError(400, message, param=name, code="invalid_parameter")
