"""A TOML file, read."""

import os
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

from arbstr_asgi.errors import ConfigError


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a TOML file says, its fractions as exact decimals. Raises ConfigError, which names the file."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"), parse_float=Decimal)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
