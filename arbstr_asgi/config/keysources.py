"""Where each provider's key comes from, as the configuration file and the environment say it."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from arbstr_asgi.config.variables import names_in


class KeySource(msgspec.Struct, frozen=True, kw_only=True):
    """Where the key of `provider` comes from; `name` is the variable or the file, `given` whether there is something.

    Of a "file" it is not known here whether it can be read. For "none", `name` is the variable that would be taken.
    """

    provider: str
    kind: Literal["literal", "variable", "convention", "file", "none"]
    name: str = ""
    given: bool = True

    def __str__(self) -> str:
        match self.kind:
            case "variable":
                return f"from {self.name}" + ("" if self.given else " (not set)")
            case "convention":
                return self.name
            case "file":
                return f"file {self.name}"
        return self.kind


def conventional(provider_name: str) -> str:
    """The environment variable of a provider without a key: its name in capitals, `_` for the rest."""
    return f"ARBSTR_{re.sub('[^A-Z0-9]', '_', provider_name.upper())}_API_KEY"


def key_source(provider: Mapping[str, Any], environ: Mapping[str, str]) -> KeySource:
    """The source of the key of one provider, as it is in the file."""
    name, key, file = (provider.get(field) for field in ("name", "api_key", "api_key_file"))
    called = str(name)
    if file is not None:
        return KeySource(provider=called, kind="file", name=str(file), given=bool(file))
    if key is not None:
        variables = names_in(str(key))
        shown = "".join(f"${{{variable}}}" for variable in variables)
        given = all(environ.get(variable) for variable in variables)
        return KeySource(provider=called, kind="variable" if variables else "literal", name=shown, given=given)
    variable = conventional(called)
    given = bool(environ.get(variable))
    return KeySource(provider=called, kind="convention" if given else "none", name=variable, given=given)


def key_sources(mapping: Mapping[str, Any], environ: Mapping[str, str]) -> list[KeySource]:
    """The same of each provider of a configuration, in its order; of what is not one, nothing."""
    providers = mapping.get("providers")
    found = providers if isinstance(providers, list) else []
    return [key_source(provider, environ) for provider in found if isinstance(provider, Mapping)]
