"""The agent's HTTP API: on a socket for root and one group, and by TLS for whoever has a certificate; docs/api.md."""
