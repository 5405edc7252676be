"""Text of others as a terminal may show it."""

import json


def escape_terminal(value: object) -> str:
    """On one line, with what could move the cursor, change colours or turn the line around written as an escape."""
    text = value if isinstance(value, str) else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def escape_terminal_json(text: str) -> str:
    """JSON that means the same, with everything of that kind escaped."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
