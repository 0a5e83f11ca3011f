"""The primary array: volumes, snapshots, change tracking; it sends backups and receives restores.

Layers, imports pointing down only: ``__main__`` | ``service``, ``convert`` | ``send``, ``restores`` and
what they stand on (``send_lanes``, ``worker_pool``, ``send_worker``, ``span_source``, ``sent_disk`` and its
two kinds, ``restore_draft``) |
``pool`` and what it stands on | the pure core (``send_plan``, ``block_map``, ``slot_counts``, ``changes``,
``lineage``, ``map_events``, ``run_log``).

The pool, from the front door inwards: ``pool`` (requests, lock order), ``volume_ops`` (resize, clone,
rollback, swap), ``draft``, ``pin``, ``pool_view`` (look-ups), ``granule_io`` (data path), ``map_commit``
(durability), ``checkpointer``, ``map_journal``, ``map_checkpoint``, ``page_file``, ``map_state`` (tables),
``block_map`` and ``slot_counts`` (who shares what), ``slot_store`` (bytes and free slots), ``pool_open``
(recovery), ``slot_audit`` and ``pool_check`` (contradictions), ``superblock`` (file names).

Concurrency of the pool. Three kinds of lock, always taken in this order and never the other way:
  gate    one range lock a volume or draft (``range_gate``); several in the order of volume ids
  commit  one a pool (``map_commit.transaction``): tables change, journal and checkpoints are written
  map     one a pool (``MapState.lock``): look-ups and changes in memory, never held over disk I/O
The lock inside ``slot_store`` is a leaf: taken last, nothing under it.

What makes each pair safe (the first column does its data I/O without commit or map lock):

  write    | write          other granules: nothing shared but the map lock; same granule: the gate.
  write    | trim           as write | write: a trim holds its range.
  write    | read           a read takes the slots that the map named when it began; they hold still until
                            it ends (slot_store F2). Overlapping bytes may be old or new, as on a disk.
  write    | flush          a write that was answered before the flush began was noted under the map lock,
                            so the flush takes its mapping and syncs its data first (C1); others may wait
                            for the next flush.
  write    | snapshot       the snapshot holds the whole gate from before it commits until birth + 1 is
                            durable: earlier writes are in it, later ones come in the next epoch.
  write    | delete volume  the deletion holds the whole gate; a write that waited finds the volume gone.
  write    | delete snapshot  what each frees is what falls to count 0 under the map lock: a slot that both
                            dropped is freed once, by the later of the two. It is released
                            only after a commit that took the writer's mapping as well (C2).
  write    | resize, rollback, swap  as write | snapshot; a write that waited looks at the size again.
  write    | write to a clone  nothing shared but the map lock: the first write into a shared page copies it.
                            A slot that both left is released after a commit that took both mappings (C8).
  write    | checkpoint     the checkpoint freezes the pages under the map lock together with taking the
                            pending mappings (C5); the writer copies a frozen page before it changes it. A
                            slot that is released meanwhile was left by frames in the new journal.
  write    | pin            a pin has the frozen map of an older epoch; a writer never touches its slots (W1).
  trim     | any            as write.
  read     | read           nothing changes.
  read     | trim, delete snapshot, delete volume, resize, rollback, swap  the reader keeps the map that it
                            found, which nobody changes any more; the slots are released, but wait for
                            the read (F2).
  read     | snapshot, flush, checkpoint  page arrays are looked up under the map lock.
  flush    | flush          the commit lock; the second finds its writes kept already, and does no I/O.
  flush    | checkpoint     the flush goes into the new journal while pages are written (checkpointer H2).
  flush    | tables         the commit lock: one frame after the other, in the order of the changes (J1).
  snapshot | snapshot       gates in the order of volume ids, then the commit lock: no deadlock, and
                            groups that share a volume are one after the other.
  snapshot | delete volume  the gate; the later of the two finds the volume gone, or with a snapshot more.
  snapshot | delete snapshot, distrust, drafts, clone  the commit lock.
  clone    | delete snapshot  the commit lock: the later finds no snapshot, or a clone that has its nodes.
  resize, rollback, swap | each other, delete volume  the gates, in the order of volume and draft ids.
  checkpoint | checkpoint   a lock of their own, before the commit lock; inside a commit there is no thread.
  pin      | delete snapshot, delete volume  the deletion marks the snapshot as ending under the map lock
                            before it commits; a pin is refused from then on, a pin before it refuses the
                            deletion. If the commit fails the mark is taken back.
  pin      | pin            a count under the map lock.
  pin      | slot reuse     a slot is released only when no snapshot names it; the pinned one stays.
  draft    | draft          each has its gate and its map; the commit lock orders their commits.
  draft    | the volume it is a clone of  as write | write to a clone; a swap holds the gates of both.
  draft write | commit, abort, save   commit and abort hold the whole gate, a later write finds the draft
                            gone; a save takes what was noted before it under the map lock.
  draft    | create volume  both check the name inside a transaction.
  changes, extents, infos | any  tables under the map lock; frozen pages need none. ``extents`` of a
                            volume is as of one instant for each 4 GiB.
  export   | delete volume, delete snapshot   a snapshot is pinned while it is exported; the edge holds a
                            volume, so that it is not exported or opened while it goes (exports X2, X3).
  NBD client | roll back, swap   refused while somebody has it open for writing; asked in the gate.
  export   | shrink         refused while the volume is exported; asked in the gate (exports X5).
  check    | any            it looks at maps that hold still, and at files between commits; a repair holds all
                            gates and the commit lock, and gives up if a volume was made meanwhile.
  open     | open           flock on the directory with a fencing token; the second is refused.
  close    | any            not allowed: the owner of the pool stops its callers first.
  any      | StoreFailed    after a failed sync every change is refused (C7); reads go on from the maps in
                            memory, which may be ahead of the disk by what was not flushed.
"""
