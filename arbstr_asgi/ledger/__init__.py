"""Recording: queues one row per call, writes batches with retries, spills to disk while the database is down."""
