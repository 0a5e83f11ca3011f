"""What lies in the server's database: its tables, and how each version became the next.

Columns beside a document repeat what is in it, for look-ups. Those of jobs are ``GENERATED``; those of
backups are written with it, as an index over generated columns reads every document again.
Callers: ``server_db``.
Format: docs/formats/server-db-v3.md
"""

from __future__ import annotations

APPLICATION_ID = 0x414C5344  # "ALSD"
VERSION = 3

SCHEMA = """
CREATE TABLE jobs (
    serial INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL,
    vm_id TEXT NOT NULL,
    document TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_backup_per_vm ON jobs (vm_id) WHERE kind = 1 AND state < 3;
CREATE INDEX unfinished_jobs ON jobs (serial) WHERE state < 3;
CREATE TABLE steps (
    job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (job_id, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE backups (
    backup_id TEXT PRIMARY KEY,
    vm_id TEXT NOT NULL,
    vm_name TEXT NOT NULL,
    target TEXT NOT NULL,
    snapshot_at_ns INTEGER NOT NULL,
    deleting INTEGER NOT NULL DEFAULT 0,
    document TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX backups_by_time ON backups (snapshot_at_ns, backup_id);
CREATE TABLE peers (
    kind INTEGER NOT NULL,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
"""
UPGRADES = {
    1: """
CREATE TABLE policies (
    name TEXT PRIMARY KEY,
    since_ns INTEGER NOT NULL,
    last_due_ns INTEGER NOT NULL DEFAULT 0,
    problem TEXT NOT NULL DEFAULT '',
    document TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE policy_starts (
    policy TEXT NOT NULL REFERENCES policies (name) ON DELETE CASCADE,
    vm_id TEXT NOT NULL,
    vm_name TEXT NOT NULL,
    due_ns INTEGER NOT NULL,
    start_ns INTEGER NOT NULL,
    PRIMARY KEY (policy, vm_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX policy_starts_by_time ON policy_starts (start_ns);
""",
    2: """
ALTER TABLE jobs ADD COLUMN vm_name TEXT GENERATED ALWAYS AS (json_extract(document, '$.vm_name')) VIRTUAL;
ALTER TABLE jobs ADD COLUMN created_at_ns INTEGER
    GENERATED ALWAYS AS (json_extract(document, '$.created_at_ns')) VIRTUAL;
ALTER TABLE jobs ADD COLUMN policy TEXT
    GENERATED ALWAYS AS (coalesce(json_extract(document, '$.backup.policy'), '')) VIRTUAL;
ALTER TABLE jobs ADD COLUMN backup_id TEXT
    GENERATED ALWAYS AS (coalesce(json_extract(document, '$.restore.backup_id'), job_id)) VIRTUAL;
ALTER TABLE jobs ADD COLUMN sweeps_left INTEGER
    GENERATED ALWAYS AS (json_extract(document, '$.sweeps_left')) VIRTUAL;
CREATE INDEX jobs_by_vm ON jobs (vm_id, serial);
CREATE INDEX jobs_by_vm_name ON jobs (vm_name, serial);
CREATE INDEX jobs_to_sweep ON jobs (serial) WHERE sweeps_left > 0;
CREATE INDEX users_of_backups ON jobs (backup_id) WHERE state < 3;
ALTER TABLE backups ADD COLUMN policy TEXT NOT NULL DEFAULT '';
ALTER TABLE backups ADD COLUMN lock_until_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE backups ADD COLUMN incremental INTEGER NOT NULL DEFAULT 0;
ALTER TABLE backups ADD COLUMN bytes_protected INTEGER NOT NULL DEFAULT 0;
ALTER TABLE backups ADD COLUMN bytes_sent INTEGER NOT NULL DEFAULT 0;
ALTER TABLE backups ADD COLUMN bytes_stored INTEGER NOT NULL DEFAULT 0;
UPDATE backups SET policy = coalesce(json_extract(document, '$.policy'), ''),
    lock_until_ns = coalesce(json_extract(document, '$.lock_until_ns'), 0),
    incremental = json_extract(document, '$.incremental');
UPDATE backups SET (bytes_protected, bytes_sent, bytes_stored) = (
    SELECT coalesce(sum(json_extract(value, '$.size_bytes')), 0),
        coalesce(sum(json_extract(value, '$.figures.bytes_sent')), 0),
        coalesce(sum(json_extract(value, '$.figures.bytes_stored')), 0)
    FROM json_each(document, '$.disks'));
CREATE INDEX backups_by_vm ON backups (vm_id, snapshot_at_ns, backup_id);
CREATE INDEX backups_by_vm_name ON backups (vm_name, snapshot_at_ns, backup_id);
CREATE INDEX backups_by_policy ON backups
    (policy, vm_name, vm_id, snapshot_at_ns, backup_id, deleting, lock_until_ns);
CREATE INDEX backups_by_space ON backups
    (target, vm_name, deleting, bytes_protected, bytes_sent, bytes_stored);
CREATE INDEX backups_in_deletion ON backups (backup_id) WHERE deleting;
""",
}
"""From each earlier version to the next."""
