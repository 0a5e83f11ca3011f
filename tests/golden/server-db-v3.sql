BEGIN TRANSACTION;
CREATE TABLE backups (
    backup_id TEXT PRIMARY KEY,
    vm_id TEXT NOT NULL,
    vm_name TEXT NOT NULL,
    target TEXT NOT NULL,
    snapshot_at_ns INTEGER NOT NULL,
    deleting INTEGER NOT NULL DEFAULT 0,
    document TEXT NOT NULL
, policy TEXT NOT NULL DEFAULT '', lock_until_ns INTEGER NOT NULL DEFAULT 0, incremental INTEGER NOT NULL DEFAULT 0, bytes_protected INTEGER NOT NULL DEFAULT 0, bytes_sent INTEGER NOT NULL DEFAULT 0, bytes_stored INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
INSERT INTO "backups" VALUES('00000000000000000000000000000009','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','web1','target1',9,0,'{"backup_id":"00000000000000000000000000000009","vm_id":"eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee","vm_name":"web1","target":"target1","snapshot_at_ns":9,"level":2,"frozen_ns":7,"disks":[{"disk_name":"disk0","image_id":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size_bytes":1048576,"root":"7272727272727272727272727272727272727272727272727272727272727272","figures":{"spans_total":1,"spans_read":0,"spans_sampled":0,"spans_hole":0,"bytes_read":0,"segments_offered":0,"bytes_offered":0,"segments_sent":0,"bytes_sent":0,"bytes_sent_wire":0,"bytes_stored":0,"spans_resumed":0,"attempts":0,"duration_ns":0},"array":"array1"}],"config":{"name":"web1","uuid":"u","cpus":2,"memory_bytes":1073741824,"disks":[{"name":"disk0","array":"array1","array_address":"127.0.0.1:7403","volume_name":"web1-disk0","size_bytes":1048576}],"networks":[{"mac":"52:54:00:00:00:01","network":"lan"}],"tags":{"a":"b"},"firmware":""},"incremental":true}','',0,1,1048576,0,0);
CREATE TABLE jobs (
    serial INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL,
    vm_id TEXT NOT NULL,
    document TEXT NOT NULL
, vm_name TEXT GENERATED ALWAYS AS (json_extract(document, '$.vm_name')) VIRTUAL, created_at_ns INTEGER
    GENERATED ALWAYS AS (json_extract(document, '$.created_at_ns')) VIRTUAL, policy TEXT
    GENERATED ALWAYS AS (coalesce(json_extract(document, '$.backup.policy'), '')) VIRTUAL, backup_id TEXT
    GENERATED ALWAYS AS (coalesce(json_extract(document, '$.restore.backup_id'), job_id)) VIRTUAL, sweeps_left INTEGER
    GENERATED ALWAYS AS (json_extract(document, '$.sweeps_left')) VIRTUAL) STRICT;
INSERT INTO "jobs" VALUES(1,'00000000000000000000000000000001',1,2,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"job_id":"00000000000000000000000000000001","kind":1,"state":2,"vm_id":"eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee","vm_name":"web1","created_at_ns":1,"backup":{"target":"target1","full":false,"direct":true,"level_min":1,"exclude_disks":["swap"]},"restore":null,"ended_at_ns":0,"ending":null,"failure":null,"cancel_asked":false,"sweeps_left":0}');
CREATE TABLE peers (
    kind INTEGER NOT NULL,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
INSERT INTO "peers" VALUES(1,'array1','127.0.0.1:7403');
INSERT INTO "peers" VALUES(2,'target1','127.0.0.1:7404');
CREATE TABLE policies (
    name TEXT PRIMARY KEY,
    since_ns INTEGER NOT NULL,
    last_due_ns INTEGER NOT NULL DEFAULT 0,
    problem TEXT NOT NULL DEFAULT '',
    document TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO "policies" VALUES('nightly',4,5,'','{"name":"nightly","disabled":false,"selection":{"vms":[],"tags":[],"hosts":[],"all":true,"exclude_vms":["test-*"],"exclude_tags":[]},"schedule":{"lines":["30 2 * * *"],"time_zone":"Europe/Berlin","jitter_seconds":600},"target":"","exclude_disks":[],"level_min":0,"change_source":0,"retention":{"keep_last":0,"keep_hourly":0,"keep_daily":7,"keep_weekly":0,"keep_monthly":0,"keep_yearly":0,"keep_within_seconds":0},"windows":[{"weekdays":["sat"],"from_time":"22:00","to_time":"06:00"}],"bytes_per_second_max":0,"lock_days":0,"full_every_days":0,"comment":""}');
CREATE TABLE policy_starts (
    policy TEXT NOT NULL REFERENCES policies (name) ON DELETE CASCADE,
    vm_id TEXT NOT NULL,
    vm_name TEXT NOT NULL,
    due_ns INTEGER NOT NULL,
    start_ns INTEGER NOT NULL,
    PRIMARY KEY (policy, vm_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "policy_starts" VALUES('nightly','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','web1',5,6);
CREATE TABLE steps (
    job_id TEXT NOT NULL REFERENCES jobs (job_id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (job_id, name)
) STRICT, WITHOUT ROWID;
INSERT INTO "steps" VALUES('00000000000000000000000000000001','locate',1,'{"name":"locate","started_at_ns":5,"ended_at_ns":6,"detail":"host host1","result":"{\"name\":\"host1\",\"address\":\"127.0.0.1:7402\"}"}');
CREATE UNIQUE INDEX one_backup_per_vm ON jobs (vm_id) WHERE kind = 1 AND state < 3;
CREATE INDEX unfinished_jobs ON jobs (serial) WHERE state < 3;
CREATE INDEX backups_by_time ON backups (snapshot_at_ns, backup_id);
CREATE INDEX policy_starts_by_time ON policy_starts (start_ns);
CREATE INDEX jobs_by_vm ON jobs (vm_id, serial);
CREATE INDEX jobs_by_vm_name ON jobs (vm_name, serial);
CREATE INDEX jobs_to_sweep ON jobs (serial) WHERE sweeps_left > 0;
CREATE INDEX users_of_backups ON jobs (backup_id) WHERE state < 3;
CREATE INDEX backups_by_vm ON backups (vm_id, snapshot_at_ns, backup_id);
CREATE INDEX backups_by_vm_name ON backups (vm_name, snapshot_at_ns, backup_id);
CREATE INDEX backups_by_policy ON backups
    (policy, vm_name, vm_id, snapshot_at_ns, backup_id, deleting, lock_until_ns);
CREATE INDEX backups_by_space ON backups
    (target, vm_name, deleting, bytes_protected, bytes_sent, bytes_stored);
CREATE INDEX backups_in_deletion ON backups (backup_id) WHERE deleting;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',1);
COMMIT;
