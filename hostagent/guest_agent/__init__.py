"""What a host does inside a guest, through the guest agent of QEMU (``qemu-ga``).

A guest and its agent are hostile input (law 13): every wait ends, every answer has a largest size and is
checked field by field, and nothing that an agent says is more than a claim.
"""
