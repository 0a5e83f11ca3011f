"""Policies: which VMs are backed up when, and how long their backups are kept."""
