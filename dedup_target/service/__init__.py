"""Edges of the dedup target: check, convert, delegate. One module a gRPC service."""
