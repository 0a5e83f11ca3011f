"""The libvirt VMM: guests of an existing host, adopted, and VMs of ours beside them.

Who owns a guest's life: its maker. An adopted guest belongs to the host's admin: it may be started, stopped,
snapshotted and given disks, and is never defined anew or undefined here. A VM of ours is a record; its
domain is written from that record each time it starts.

| At once | with | safe because |
|---|---|---|
| any call | libvirtd away, restarted, hung | every call ends in time; exports live in QEMU |
| a VM snapshot | the admin starts, stops, destroys | the export shows its instant or nothing (X1) |
| a VM snapshot | hostagent dies | exports and checkpoints bear its id; its record has them ended |
| two VM snapshots | of one guest | refused: libvirt has one backup job a guest |
| adoption | the admin's changes | what libvirt said last is kept; a guest goes when it was missing twice |
"""
