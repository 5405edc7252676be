"""Counts tokens with OpenAI's tokenizer. Imported only where bpe-openai is installed, and slow to be imported."""

from collections.abc import Callable

import bpe_openai

ENCODING = "o200k_base"  # that of OpenAI's models since GPT-4o; others have their own, which differ by some per cent
PIECE_CHARACTERS = (
    4 * 1024
)  # characters at a time: meanwhile nothing else runs, for a tenth of a millisecond, for odd texts 8


class Stopped(Exception):
    """There is no time left to count."""


class Tokenizer:
    """Loads what it needs when it is made: half a second, of which 0.15 s let nothing else in the process run."""

    def __init__(self) -> None:
        self._encoding = bpe_openai.get_encoding(ENCODING)

    def count(self, text: str, stopped: Callable[[], bool]) -> int:
        """The tokens of a text, whatever is in it, to one in a thousand. Raises Stopped."""
        tokens = 0
        for offset in range(0, len(text), PIECE_CHARACTERS):
            if stopped():
                raise Stopped
            tokens += len(self._encoding.encode_ordinary(text[offset : offset + PIECE_CHARACTERS]))
        return tokens
