"""What others are told of finished calls: Prometheus and the log."""
