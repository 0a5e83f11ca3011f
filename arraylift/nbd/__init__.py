"""Serve disks by NBD: the server side of the protocol, for every daemon that has disks to serve.

From the bytes upwards: ``wire`` (numbers and structures), ``device`` (what is served), ``access`` (who
may), ``options`` and ``negotiation`` (a connection until it has its disk), ``transmission`` (from then
on), all without sockets, threads or clocks; ``link`` and ``tls`` (bytes to and fro), ``connection`` (one
client), ``server`` (all of them). Nothing here knows what a volume, an image or a pool is.
Protocol: docs/protocols/nbd.md
"""
