"""What the commands show of a ledger, and what they do to one."""
