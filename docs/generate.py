"""Writes what the pages take from the code: reference/configuration.md, and files that pages show whole.

    python docs/generate.py            writes
    python docs/generate.py --check    says what is out of date, and ends with 1

A block that comes after the comment `<!-- file: example_app/x.py -->` is that file.
"""

import ast
import inspect
import re
import sys
import types
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from arbstr_asgi.config.config import Config
from arbstr_asgi.config.policies import Policies, Rule
from arbstr_asgi.config.provider import Drain, Provider, Rates
from arbstr_asgi.config.section import ConfigSection
from arbstr_asgi.config.settings import DatabaseConfig, Failover, Limits, Logging, Server, Token

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "docs" / "reference" / "configuration.md"
SECTIONS: tuple[tuple[type[ConfigSection], str], ...] = (  # in the order of the page, with their places in a TOML file
    (Config, "top of the file"),
    (Server, "`[server]`"),
    (Token, "`[[server.tokens]]`"),
    (DatabaseConfig, "`[database]`"),
    (Provider, "`[[providers]]`"),
    (Rates, '`[providers.model_rates."gpt-4o"]`'),
    (Drain, "`disconnect` of a provider"),
    (Policies, "`[policies]`"),
    (Rule, "`[[policies.rules]]`"),
    (Failover, "`[failover]`"),
    (Limits, "`[limits]`"),
    (Logging, "`[logging]`"),
)
HEAD = """# Configuration

<!-- made by docs/generate.py from arbstr_asgi/config: change the docstrings there -->

In code these are the arguments of `Config`, `Provider` and so on, all by name; in a TOML file they are keys of its
tables. Both are checked alike: an unknown name is an error, as is a value of another type, and the message says the
whole path, as in `providers[2].input_rate`.

- Any text in a file may hold `${VARIABLES}` of the environment.
- A provider without `api_key` and `api_key_file` has the key of `ARBSTR_<NAME>_API_KEY`: its name in capitals, with `_`
  for all but letters and digits.
- `api_key_file` and `ca_file` are relative to the folder of the TOML file.
- `arbstr check` reads a file and says what is wrong, or probably not meant, and where each key comes from.
- Where no default is shown the field is required. `-` is None: it is not set.

A whole file is in [Standalone](../start/standalone.md).
"""
_NAMES: dict[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean", Decimal: "number"}
_NAMES[Any] = "string, in code also a function"  # an ApiKey, whose union msgspec does not take
_FILE = re.compile(r"(<!-- file: (\S+) -->\n+```\w+\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)


def kind(annotation: Any) -> str:
    """The type as a reader of a TOML file would say it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        named = [kind(part) for part in parts if part is not type(None)]
        if "number" in named:
            named = [name for name in named if name != "integer"]
        return " or ".join(dict.fromkeys(named))
    if origin is Literal:
        return " or ".join(f'`"{part}"`' for part in parts)
    if origin is dict:
        return f"table of {plural(kind(parts[1]))}"
    if origin is not None and issubclass(origin, Sequence):
        return f"list of {plural(kind(parts[0]))}"
    if isinstance(annotation, type) and issubclass(annotation, ConfigSection):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return _NAMES[annotation]


def plural(name: str) -> str:
    """`strings` for `string`; a link stays."""
    return name if name.startswith("[") else f"{name}s"


def default(field: msgspec.structs.FieldInfo) -> str:
    """The default as in a TOML file; empty for a required field."""
    if field.required:
        return ""
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()  # type: ignore[misc]
    if value is None or isinstance(value, ConfigSection):
        return "-"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, int | float):
        return f"`{value:_}`" if value >= 10_000 else f"`{value:g}`"
    return {"tuple": "`[]`", "dict": "`{}`"}[type(value).__name__]


def sentences(section: type[ConfigSection]) -> dict[str, str]:
    """What stands below each field of the class and of its bases."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if cls is ConfigSection or not issubclass(cls, ConfigSection):
            continue
        [body] = ast.parse(inspect.getsource(cls)).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
                    raise TypeError(f"{cls.__name__}.{field.target.id} has no docstring below it")
                found[field.target.id] = str(below.value.value)
    return found


def rows(section: type[ConfigSection]) -> Iterator[str]:
    """A line of the table for each field."""
    said, hints = sentences(section), get_type_hints(section)
    for field in msgspec.structs.fields(section):
        sentence, _, unit = said[field.name].partition(" Unit: ")
        cells = (f"`{field.name}`", kind(hints[field.name]), default(field), unit.rstrip("."), sentence)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def configuration() -> str:
    """The page of all settings."""
    parts = [HEAD]
    for section, place in SECTIONS:
        text = inspect.getdoc(section) or ""
        parts.append(f"## {section.__name__}\n\nIn a file: {place}. {text}\n\n| field | type | default | unit | |")
        parts[-1] += "\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows(section)) + "\n"
    return "\n".join(parts)


def with_files(text: str) -> str:
    """A page with the files that it shows as they are now."""
    return _FILE.sub(lambda found: found[1] + (ROOT / found[2]).read_text("utf-8") + found[4], text)


def pages() -> list[Path]:
    """README.md and each page below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def outdated() -> dict[Path, str]:
    """The pages that must be written, with what they should be."""
    wanted = {page: with_files(page.read_text("utf-8")) for page in pages() if page != CONFIGURATION}
    wanted[CONFIGURATION] = configuration()
    return {page: text for page, text in wanted.items() if not page.exists() or page.read_text("utf-8") != text}


def main() -> int:
    """The command."""
    found = outdated()
    for page, text in found.items():
        print(page.relative_to(ROOT))
        if "--check" not in sys.argv:
            page.write_text(text, "utf-8")
    return int("--check" in sys.argv and bool(found))


if __name__ == "__main__":
    sys.exit(main())
