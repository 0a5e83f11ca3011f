"""How daemons talk: server and channel factories, identity, authorization, the status table.

Only the edges of a daemon (its ``service``, ``peers`` and composition root) import this package.
"""
