"""The catalog: which files an image holds, and where in the image their bytes lie.

One parser so far: ext2, ext3 and ext4, on a whole disk or in a GPT or MBR partition. It runs in a
throw-away subprocess (docs/decisions/0035-parse-images-in-a-subprocess.md); ``browse`` is what the
server calls.
"""
