"""Token counts of calls whose provider gave none."""
