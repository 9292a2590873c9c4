"""The service: it heals what a crash left, watches the guests, serves metrics and the HTTP API. See docs/agent.md.

It changes nothing itself: what changes something runs as `hostagent VERB` in a process of its own, and goes on when
the service dies.
"""
