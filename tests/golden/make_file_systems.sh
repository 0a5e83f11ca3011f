#!/bin/bash
# Makes the golden images that no unprivileged tool makes: an NTFS with streams, links, sparse and compressed files,
# an ext4 that was cut off between fast commits, and the heads of two physical volumes of one LVM group.
# Needs root, loop devices, ntfs-3g, lvm2 and a kernel with fast commits. What is in them follows from their names.
set -eu
out=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'umount "$work/m" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
mkdir m

cat >fill.py <<'END'
"""Arguments: path, bytes, path, bytes, ...: each file is its path within m over and over."""
import os, sys

for path, size in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    text = ("/" + path.partition("/")[2] + "\n").encode()
    with open(path, "wb") as file:
        file.write((text * (size // len(text) + 1))[:size])
        file.flush()
        os.fsync(file.fileno())
END
fill() { python3 fill.py "$@"; }
many() { # prefix, count, bytes of each by its number
    fill $(for number in $(seq "$2"); do echo "$1$number" $((number * $3)); done)
}

# -- NTFS ------------------------------------------------------------------------------------------
truncate -s 12M ntfs.img
mkntfs -q -F -c 1024 -L Golden ntfs.img >/dev/null
ntfs-3g -o streams_interface=xattr,permissions,compression ntfs.img m
mkdir -p m/many m/deep/er m/packed
many m/many/file-number- 400 7
rm m/many/*7
fill m/resident 300
: >m/empty
fill m/large 700000
fill "m/deep/er/ünï-ሴ💾" 5000
ln m/large m/deep/hard
for number in $(seq 150); do
    dd if=m/large of=m/fragments bs=1024 count=1 seek=$((number * 2)) conv=notrunc status=none
    dd if=m/large of=m/others bs=1024 count=1 seek=$number conv=notrunc status=none
done
truncate -s 900000 m/fragments
truncate -s 2000000 m/hole
setfattr -n user.note -v "a stream" m/resident
setfattr -n user.long -v "$(head -c 9000 /dev/zero | tr '\0' s)" m/large
setfattr -h -v 0x00000800 -n system.ntfs_attrib_be m/packed
fill m/packed/file 200000
chown 1000:1000 m/deep/er
chmod 700 m/deep/er
umount m

# -- ext4 with fast commits ------------------------------------------------------------------------
truncate -s 8M ext4-fast-commit.img
mke2fs -q -t ext4 -b 1024 -I 256 -O fast_commit -J size=2,fast_commit_size=256 ext4-fast-commit.img 2>/dev/null
mount -o loop ext4-fast-commit.img m
mkdir m/old
many m/old/ 20 100
sync
many m/new- 25 700
python3 -c 'import os
os.unlink("m/old/4"), os.rename("m/old/5", "m/old/renamed"), os.link("m/old/6", "m/linked")
fd = os.open("m/old/8", os.O_RDWR)
os.ftruncate(fd, 10), os.fsync(fd)
fd = os.open("m/old/9", os.O_RDWR)
os.posix_fallocate(fd, 0, 20000), os.fsync(fd)'
cat ext4-fast-commit.img >cut.img
umount m
mv cut.img ext4-fast-commit.img

# -- LVM -------------------------------------------------------------------------------------------
truncate -s 64M pv0.img pv1.img
one=$(losetup -f --show pv0.img)
two=$(losetup -f --show pv1.img)
lvm_do() {
    "$@" --driverloaded n --config "devices{filter=[\"a|$one|\",\"a|$two|\",\"r|.*|\"] use_devicesfile=0}
        activation{udev_sync=0 udev_rules=0}" >/dev/null 2>&1
}
lvm_do pvcreate "$one" "$two"
lvm_do vgcreate -s 1M vg0 "$one" "$two"
lvm_do lvcreate -an -Zn -Wn -L 40M -n root vg0
lvm_do lvcreate -an -Zn -Wn -i2 -I64k -L 20M -n stripe vg0
lvm_do lvcreate -an -Zn -Wn -L 8M -n small vg0
lvm_do lvextend -l +40 vg0/root
losetup -d "$one" "$two"
head -c 1M pv0.img >lvm2-pv0.img
head -c 1M pv1.img >lvm2-pv1.img

for image in ntfs ext4-fast-commit lvm2-pv0 lvm2-pv1; do xz -9e -c $image.img >"$out/$image.img.xz"; done
ls -l "$out"/*.xz
