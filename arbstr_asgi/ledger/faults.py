"""What a driver raised, in words for an operator."""

from databases import Database


def describe_error(error: BaseException, database: Database | None = None) -> str:
    """Type and first line, without the password and without a statement's values."""
    name = type(error).__name__
    if isinstance(error, TimeoutError) and not str(error):
        return f"{name}: no answer in time"
    lines = str(error).splitlines()
    if not lines or name == "ProgrammingError":  # MySQL quotes the statement, values and all
        return name
    line = lines[0][:200]
    if database is not None:
        for secret in {database.url.password, database.url.components.password} - {None, ""}:
            line = line.replace(str(secret), "***")
    return f"{name}: {line}"
