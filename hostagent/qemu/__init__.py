"""The QEMU driver: one QEMU process a running VM, on disks that arrays serve by NBD.

Who may touch what at once, besides the VM's lock that use cases hold:

| | power, disks | reap | is_running, thaw |
|---|---|---|---|
| power, disks | the guest's lock | the guest's lock; reap passes by a guest that is busy | no lock |
| reap | | one thread | no lock |

What lives where: the VM's record (vm_store.py) says what should run; ``RunRecord`` in the VM's folder what
arrays may serve for it, written before they are asked; the lock file that QEMU itself holds says what runs.
Why: docs/decisions/0087-qemu-holds-the-lock.md, 0088-disks-of-a-guest-are-exports.md
"""
