"""Counts tokens with OpenAI's tokenizer. Needs bpe-openai, which is slow to import."""

from collections.abc import Callable

import bpe_openai

ENCODING = "o200k_base"  # that of OpenAI's models since GPT-4o; others have their own, which differ by some per cent
PIECE_CHARACTERS = 4 * 1024  # per call, which holds the GIL: for 0.1 ms, for unusual texts 8 ms


class Stopped(Exception):
    """Counting was stopped by the caller."""


class Tokenizer:
    """Loads the vocabulary when created: half a second, 0.15 s of which block the whole process."""

    def __init__(self) -> None:
        self._encoding = bpe_openai.get_encoding(ENCODING)

    def count(self, text: str, stopped: Callable[[], bool]) -> int:
        """The number of tokens of a text, within 0.1 %; raises Stopped once `stopped()` is True."""
        tokens = 0
        for offset in range(0, len(text), PIECE_CHARACTERS):
            if stopped():
                raise Stopped
            tokens += len(self._encoding.encode_ordinary(text[offset : offset + PIECE_CHARACTERS]))
        return tokens
