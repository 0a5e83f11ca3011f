"""The host agent: owns VM lifecycle, power, quiescing and VM snapshots of one host."""
