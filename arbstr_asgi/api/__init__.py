"""The endpoints other than chat completions: models, cost estimate, providers, health, metrics, statistics."""
