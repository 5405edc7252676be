"""The configuration: types, validation, loading from a mapping or a TOML file."""
