"""Roll-ups: totals precomputed by hour, six hours and day; building, maintenance, reading."""
