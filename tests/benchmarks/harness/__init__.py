"""What the benchmarks are made of: providers, servers and clients as processes, measures and reports."""
