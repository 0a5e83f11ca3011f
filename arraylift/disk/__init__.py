"""The parts of ``arraylift.durable``: import from there, not from here."""
