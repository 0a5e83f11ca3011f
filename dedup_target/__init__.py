"""The deduplicating target: segments, containers, index, images.

Layers of storage, each module the only owner of its files (docs/formats/unit-v2.md): ``store`` is
the target, and opens ``units`` and ``transfer_log``; ``units`` opens each ``storage_unit``, and
``all_manifests`` shows their images as one. A unit reaches its bytes through a
``unit_backend`` (``directory_backend`` and ``s3_backend`` are two), and opens over it
``key_store``, ``container_store``
(over ``container_format``, ``container_buffer``, ``loading_cache``), ``quarantine``, the index
(``segment_index`` says what one is, ``rocks_index`` is one, ``index_place`` says where, ``rebuild``
mends it, ``online_rebuild`` makes it anew),
``manifest_store`` and ``backup_manifest_store``; ``arraylift.envelope`` frames the small files.
Work that comes round is kept by ``housekeeping``.

Concurrency: what makes each pair of operations safe. Orders are those of law 1; "lock" is
``Quarantine.lock``, under which everything is condemned and every commit re-checks.

=================  ==============================================================================
append + append    a buffer belongs to one lane (or its lock); ids come from one counter (S2)
append + seal      the buffer is handed over; nobody appends to what is being sealed
append + read      appended records never move (B1); readers hold views of finished frames
seal + seal        different files; each is one atomic publish (S1)
seal + look-up     a record is present only after its container's index batch: look-ups before
                   that answer "missing", which costs a second copy and nothing else (I2)
seal + commit      the commit comes after the index batch of all its containers (law 1)
seal + condemn     new records are in no quarantine; the index writes one batch at a time (I3)
look-up + condemn  the look-up may answer "present" until it is over; the commit sees that
                   ``generation`` has grown at its end, and checks again under the lock (Q2)
look-up + removal  an answer "present" pins its containers, under the lock and only if nothing was
                   removed since the look-up; whoever removes looks at the pins first (P1)
look-up + reopen   nobody closes a handle while anybody reads (E1); look-ups then wait for the new
                   one (R2)
rebuild + look-up  the fresh index takes over at one instant, when it has all that the old one
                   promises (O1)
rebuild + seal     containers sealed meanwhile are added before the switch, the last of them while index
                   batches wait; what is indexed later goes into the fresh one
rebuild + base     a doubt is there before the fresh index is (H1), and no look that began before ends it (H2)
rebuild + condemn  the switch holds the lock, and quarantined records were taken out before it
commit + condemn   the lock: either the commit publishes first and the condemned record is a
                   damaged one of its image, or the commit sees it absent and asks again
commit + commit    the lock; manifests are different files (AlreadyExists for one id)
commit + removal   the lock; removal requires that every live fingerprint resolves elsewhere
read + removal     readers look up again when a container is gone; views and cached containers
                   they hold stay whole, as ids are never reused (S2)
read to its end    whoever sends an image holds its root, so that deleting it meanwhile leaves
                   the bytes until he is done
scrub + removal    what is condemned is, under the lock, of a container that is still there
scrub + append     a period ends below the lowest id that is being filled: nothing unread counts as seen
lock + deletion    one change of images and backups at a time (backups.py); the lock is in the manifest first
read + condemn     each record is verified when it is read, condemned or not (S3)
removal + removal  the lock
removal + crash    entries go before the file: what is left over is indexed again at start
collect + ingest   pins, and the watch of a whole cycle (collect.py G1); only containers that were indexed
                   when the cycle began are judged (G2)
collect + commit   deletion and publication hold the lock; a commit that the mark did not see rests on
                   containers that were pinned in this cycle
collect + seal     a sealed container may hide older copies that promises rest on: they are indexed
                   again before it goes (pins.py P4)
collect + delete   an image that goes meanwhile counts in this cycle, as a base or a hold beyond (K1)
collect + collect  one maintenance a unit (A1); likewise move, drain, rebuild
move + ingest      the newest image of a disk and every base stay (V3); a base that goes all the same is
                   read as none, as it lies in another unit (transfer.py X2)
move + read        a reader holds the image's root where it found it; who opens it later finds the
                   other copy (all_manifests.py)
move + delete      one at a time publishes or removes (all_manifests.py L4); the manifest here decides, under
                   the lock: if it is gone, the copy goes too (V2)
move + lock        likewise: a lock that grew meanwhile is carried over before the manifest here goes
move + retire      retiring is maintenance of the unit, as a move is (A1)
move + crash       the image is whole in one unit, or in both, which is one image (V1)
absence + read     PeerUnavailable, never NotFound, so nothing is condemned (anchored_backend.py A1)
drain + ingest     all attempts are fenced before another unit receives; what they logged is looked up
                   there (unit_admin.py D2)
replica + removal  the mark comes first: a replica drops what was removed, keeps what was lost (J1)
collect + crash    every step is one of append, seal, condemn, removal; state that is lost costs two cycles
call + call        of one transfer id: the later one fences the earlier, under the registry's lock; a
                   commit that has begun comes first, and its image answers both (R4)
silence + append   a lane that is silent has its container sealed by the reaper, which never waits
                   for a busy lane
log + log          a log belongs to its transfer's lock; logs are different files
log + seal         leaves are logged after seal and index batch, so a replayed log never
                   promises what is not there (T1)
start + anything   the state lock (U1); the index is in line with the containers before the
                   first answer (U3)
=================  ==============================================================================
"""
