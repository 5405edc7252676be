"""Telemetry of finished calls: Prometheus metrics and the access log."""
