"""Edges of the virtual center: check, convert, delegate."""
