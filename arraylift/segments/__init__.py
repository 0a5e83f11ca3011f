"""Segments, fingerprints, codecs and segment trees: pure functions, no I/O.

Formats: docs/formats/fingerprint-v1.md, docs/formats/segment-tree-v1.md.
"""
