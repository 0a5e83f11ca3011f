"""The backup server: owns jobs, policies, schedules, retention, the registry and the catalog."""
