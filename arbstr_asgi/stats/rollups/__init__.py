"""Sums of hours, six hours and days: made, kept right, and read."""
