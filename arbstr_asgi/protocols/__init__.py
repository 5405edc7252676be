"""Parses chat completion requests and meters responses. Pure: no I/O, no clock, no environment."""
