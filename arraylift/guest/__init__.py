"""A small guest out of Debian's packages, for tests, for the demo, and to try VMs with.

Three disks: the first boots by BIOS and by UEFI, the two others hold data. Inside run the guest agent, a
runner of tasks (``files/tasks``) and, where asked for, a writer whose traces say of any later copy of
the disks whether it is of one instant (``files/writer``).
"""
