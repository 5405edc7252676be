"""The tests, by tier: unit, integration, acceptance, faults, mutants, benchmarks; their helpers are in `support`."""
