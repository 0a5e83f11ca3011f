"""The segment exchange: one protocol for backup, restore and replication.

``messages`` says what is said, ``wire`` how it looks, ``sender`` and ``receiver``
who may say what when (sans-I/O), ``verify`` what a receiver must check, and
``lane`` drives a sender over gRPC. Page: docs/protocols/exchange-v1.md.
"""
