"""What a request and a reply mean. Pure: no I/O, no clock, no environment."""
