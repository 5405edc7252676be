"""What an operator decides: its types, its checks, and where it is read from. Pure."""
