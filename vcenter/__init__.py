"""The virtual center: owns hosts, the VM inventory and the live VM configuration."""
