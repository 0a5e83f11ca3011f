#!/bin/bash
# Judge an NBD server by outside programs: nbd_conform.sh URI
#
# The export needs 64 MiB or more and loses its content. Prints a line a check, then "all N passed",
# or how many failed; exit code 1 then. Needs nbdinfo, nbdcopy, qemu-img, qemu-io, fio, python3.
# Works below TMPDIR.
set -u
uri=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1  # fio leaves files where it stands
size=$(nbdinfo --size "$uri") || exit 1
passed=0
failed=0

# check NAME COMMAND...: the command must end well within 60 s
check() {
    local name=$1 begin=$EPOCHREALTIME
    shift
    if timeout 60 "$@" >"$work/out" 2>&1; then
        passed=$((passed + 1)) result=passed
    else
        failed=$((failed + 1)) result="FAILED ($?)"
    fi
    printf '%-24s %-12s %5.2f s\n' "$name" "$result" "$(awk "BEGIN{print $EPOCHREALTIME - $begin}")"
    [ "$result" = passed ] || tail -n 5 "$work/out"
}

# io NAME COMMAND...: commands of qemu-io, which says what went wrong but ends well
io() {
    local name=$1 arguments=()
    shift
    for each in "$@"; do arguments+=(-c "$each"); done
    check "qemu-io $name" bash -c '
        said=$(qemu-io -f raw -t none "$@" 2>&1) || exit 1
        ! grep -qiE "failed|error" <<<"$said" || { echo "$said"; exit 1; }' _ "${arguments[@]}" "$uri"
}

verify=(fio --name=verify --ioengine=nbd "--uri=$uri" --size=16m --iodepth=16 --verify=crc32c --verify_fatal=1
        --do_verify=1 --randrepeat=0 --minimal)

dd if=/dev/urandom of="$work/half" bs=1M count=$((size / 2097152)) status=none
truncate -s "$size" "$work/half"

for ability in flush fua trim zero df structured-reply multi-conn cache fast-zero; do
    check "can $ability" nbdinfo --can "$ability" "$uri"
done
check "nbdinfo json" nbdinfo --json "$uri"
check "nbdinfo list" nbdinfo --list "$uri"
check "nbdcopy in" nbdcopy --flush --connections=4 --requests=32 "$work/half" "$uri"
check "nbdinfo map" bash -c "nbdinfo --map=base:allocation '$uri' | awk '{s+=\$2; h+=\$2*(\$3==3)} END{exit s!=$size || h<$size/3}'"
check "nbdcopy out" bash -c "nbdcopy '$uri' $work/copy && cmp $work/half $work/copy"
check "nbdcopy synchronous" bash -c "nbdcopy --synchronous --request-size=65536 '$uri' $work/copy2 && cmp $work/half $work/copy2"
check "qemu-img compare" qemu-img compare -f raw -F raw "$work/half" "$uri"
check "qemu-img map" bash -c "qemu-img map -f raw --output=json '$uri' |
    python3 -c 'import json,sys; assert sum(e[\"length\"] for e in json.load(sys.stdin)) == $size'"
check "qemu-img convert out" bash -c "qemu-img convert -m 8 -W -f raw -O qcow2 '$uri' $work/copy.qcow2 &&
    qemu-img compare -f raw -F qcow2 $work/half $work/copy.qcow2"
check "qemu-img convert in" bash -c "qemu-img convert -n -m 8 -W -f qcow2 -O raw $work/copy.qcow2 '$uri' &&
    qemu-img compare -f raw -F raw $work/half '$uri'"
io fua 'write -f -P 0xab 0 64k' 'read -P 0xab 0 64k' 'flush'
io odd 'write -P 0x5a 1 511' 'read -P 0x5a 1 511' 'read -P 0xab 512 512' 'write -P 1 33554431 2' 'read -P 1 33554431 2'
io zeroes 'write -P 0xcc 1M 3M' 'write -z 1M 1M' 'read -P 0 1M 1M' 'read -P 0xcc 2M 1M' 'write -z -u 2M 1M' 'read -P 0 2M 1M'
io fast-zero 'write -P 0xcc 1M 3M' 'write -z -n 3M 1M' 'read -P 0 3M 1M'
io trim 'write -P 0xdd 8M 8M' 'discard 10M 2M' 'read -P 0xdd 8M 2M' 'read -P 0xdd 12M 4M' 'flush'
io aio 'aio_write -P 1 16M 4M' 'aio_write -P 2 20M 4M' 'aio_flush' 'read -P 1 16M 4M' 'read -P 2 20M 4M'
io big 'write -P 7 0 32M' 'read -P 7 0 32M' 'write -z 0 64M' 'read -P 0 0 64M'
check "qemu-img bench" qemu-img bench -f raw -t none -w -c 2000 -d 32 -s 16k --flush-interval=64 "$uri"
check "fio 4 KiB, fsync" "${verify[@]}" --rw=randwrite --bs=4k --fsync=64
check "fio mixed sizes" "${verify[@]}" --rw=randwrite --bssplit=512/10:4k/40:64k/40:1m/10 --bs_unaligned=0
check "fio backlog" "${verify[@]}" --rw=randwrite --bs=8k --verify_backlog=256
check "fio trim" fio --name=trim --ioengine=nbd "--uri=$uri" --size=16m --rw=randtrim --bs=64k --iodepth=8 --minimal
check "fio four clients" "${verify[@]}" --size=4m --offset_increment=8m --numjobs=4 --rw=randwrite --bs=4k --group_reporting

if [ "$failed" = 0 ]; then echo "all $passed passed"; else echo "$failed of $((passed + failed)) failed"; fi
[ "$failed" = 0 ]
