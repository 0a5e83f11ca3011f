"""Edges of the host agent: check, convert, delegate. One module a gRPC service."""
