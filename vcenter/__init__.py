"""The virtual center: owns hosts, the VM inventory and the live VM configuration.

Layers, imports pointing down only: ``__main__`` | ``service``, ``peers`` | ``convert`` | ``migrate`` |
``prepare_backup``, ``provision``, ``migration_steps``, ``synchronize`` | ``routing``, ``watch`` |
``live_inventory``, ``moves`` | ``inventory_store`` | the pure core (``record``, ``placement``, ``event_log``,
``inventory``, ``migration``, ``model``).

Locks, none of them held while a host is asked: one in ``live_inventory`` (changes; over it the
store's fsync), one in ``provision`` (placements; over it the store's fsync), one in ``moves`` (migrations;
over it the store's fsync), and the store's own, a leaf. ``provision`` reads inventories and takes the lock of
``moves`` under its own; ``migrate`` takes that of ``moves`` under the one of its runs; no others nest.

What makes each pair safe:

  read     | any            readers hold an Inventory that never changes; the next one replaces it whole.
  report   | report         the live lock; of one host, the sequence decides, whichever comes first.
  report   | answer of a host about a VM   the answer is held until a report agrees or 10 s passed, so
                            a report that the host made before the answer does not undo it.
  answer   | answer         of one VM: its revision at the host decides.
  report   | synchronize    a listing that a report overtook is left aside.
  report   | silence        the live lock; a host heard after it was marked is found again.
  remove host | anything    the host's later answers find it unknown and change nothing; its placements
                            and snapshots go in the same transaction.
  prepare  | prepare        the host is idempotent by (VM, name).
  prepare  | VM moves       the first host answers "not found": it is asked for all it has, and the VM is
                            looked up once more; release and renew go to the host that took the snapshot.
  prepare | migrate         the center refuses while the VM moves; a snapshot that came first holds the VM's
                            lock at its host, so the host hands over after it.
  migrate | migrate         of one VM: the second follows the first, or is refused if it goes elsewhere.
  migrate | report          the old host's word counts no more once the new one has accepted; the new claim
                            is in the inventory before the old one leaves it.
  migrate | kill -9         the phase is durable before a host is asked in it; each step may be repeated.
  migrate | remove host     the operator's word that it is gone for good: see decision 0099.
  provision | provision     of one id or one name: the second is refused while the first runs.
  provision | kill -9       the host asked is durable before it is asked; a retry asks the same one.
  change   | watch          the event is added together with the inventory it belongs to; a watcher that
                            falls behind the log is ended.
  open     | open           flock on the directory with a fencing token; the second is refused.
  any      | StoreFailed    no change is taken until a restart; reads go on.
"""
