"""What the five Arraylift daemons share: contracts, exchange, segments, the durable seam.

Nothing here imports a daemon; daemons never import each other.
"""

__version__ = "0.1.0"
