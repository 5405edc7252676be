"""What several tests use: a fake provider, clients on sockets, servers, proxies, databases and reference results."""
