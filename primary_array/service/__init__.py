"""Edges of the primary array: check, convert, delegate. One module a gRPC service."""
