"""Whom to ask, how, and at what price."""
