"""Doing an update: journal, engine, step tables, recovery."""
