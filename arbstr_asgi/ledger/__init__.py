"""Recording: one row for each call, written in batches, never lost."""
