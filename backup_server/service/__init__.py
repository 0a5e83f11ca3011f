"""Edges of the backup server: check, convert, delegate."""
