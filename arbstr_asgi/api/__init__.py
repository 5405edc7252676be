"""The endpoints beside the metered ones: models, costs, providers, health, metrics, statistics."""
