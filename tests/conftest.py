"""Fixtures that several test files use."""

from databases_under_test import database_url, server_url

__all__ = ["database_url", "server_url"]
