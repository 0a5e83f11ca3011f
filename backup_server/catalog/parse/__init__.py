"""What the parser's process does: from bytes of hostile disks to volumes, names, attributes and pieces.

Own code in Python throughout, so that no image can crash or take over what reads it; it may still hang, which
the parent ends (docs/decisions/0109-own-parsers.md). Nothing here is imported by the server's process.

Every file system is a class with the methods of ``filesystem.FileSystem``. Whatever contradicts itself raises
WrongState, IndexError, ValueError or struct.error, never a wrong answer; who asks turns these into a reason.
"""
