#!/bin/sh
# Discover, connect, identify, and verified I/O of every size and depth, on a volume of 4 KiB blocks ($NQN) and on one of 512-byte
# blocks ($NQN512), with and without digests.
. /lib.sh

say discover
nvme discover -t tcp -a "$ADDR" -s "$PORT" >/tmp/discovery || die "nvme discover"
cat /tmp/discovery
for nqn in "$NQN" "$NQN512"; do grep -q "$nqn" /tmp/discovery || die "$nqn is not in the discovery log"; done

say connect
connect "$NQN"
connect "$NQN512"
dev=$(device_of "$NQN")
dev512=$(device_of "$NQN512")
[ "$(blockdev --getss "$dev")" = 4096 ] || die "block size of $dev is $(blockdev --getss "$dev")"
[ "$(blockdev --getss "$dev512")" = 512 ] || die "block size of $dev512 is $(blockdev --getss "$dev512")"
[ "$(blockdev --getsize64 "$dev")" = "$SIZE" ] || die "size of $dev is $(blockdev --getsize64 "$dev"), not $SIZE"

say identify
ctrl=/dev/$(controller_of "$NQN")
nvme id-ctrl "$ctrl" | tee /tmp/id-ctrl | grep -E '^(sn|mn|fr|mdts|cntlid|ver|oncs|nn|subnqn)' || die "id-ctrl"
grep -q "$NQN" /tmp/id-ctrl || die "id-ctrl does not name the subsystem"
nvme id-ns "$dev" >/tmp/id-ns || die "id-ns"
grep -q "nsze" /tmp/id-ns || die "id-ns says nothing"
nvme list-ns "$ctrl" || die "list-ns"
nvme ns-descs "$dev" || die "ns-descs"
nvme smart-log "$ctrl" >/dev/null || die "smart-log"
nvme error-log "$ctrl" >/dev/null || die "error-log"
nvme fw-log "$ctrl" >/dev/null || die "fw-log"
nvme effects-log "$ctrl" >/dev/null || die "effects-log"
nvme ana-log "$ctrl" >/dev/null || die "ana-log"
nvme get-feature "$ctrl" -f 7 >/dev/null || die "get-feature"

say "data that was never written is zero"
dd if="$dev" bs=64k count=16 iflag=direct 2>/dev/null | cmp - /dev/zero 2>&1 | grep -q 'EOF on -' || die "a new volume has data"

matrix() { # DEVICE BYTES...
	local device=$1 bs depth count size
	shift
	for bs; do
		for depth in 1 8 32 128; do
			say "verified I/O on $device, $bs B, depth $depth"
			count=512
			[ $depth = 1 ] && count=64
			size=$((bs * count))
			[ $size -gt 33554432 ] && size=33554432
			verified_io "$device" "$bs" "$depth" "$size"
		done
	done
}
matrix "$dev512" 512 4096 65536
matrix "$dev" 4096 16384 131072 1048576
say "mixed sizes, two jobs"
verified_io "$dev" 4k-1m 16 16m --bsrange=4k-1m --numjobs=2 --offset_increment=32m

say flush, write zeroes, discard
dd if=/dev/urandom of=/tmp/r bs=1M count=1 2>/dev/null
dd if=/tmp/r of="$dev" bs=1M oflag=direct conv=fsync 2>/dev/null
dd if="$dev" bs=1M count=1 iflag=direct 2>/dev/null | cmp - /tmp/r || die "what was written is not read"
blkdiscard -z -o 0 -l 65536 "$dev" || die "write zeroes"
dd if="$dev" bs=64k count=1 iflag=direct 2>/dev/null | cmp -n 65536 - /dev/zero || die "write zeroes did not zero"
blkdiscard -o 65536 -l 65536 "$dev" || die "discard"
dd if="$dev" bs=64k skip=1 count=1 iflag=direct 2>/dev/null | cmp -n 65536 - /dev/zero || die "discarded blocks are not zero"
dd if="$dev" bs=64k skip=2 count=14 iflag=direct 2>/dev/null >/tmp/tail
dd if=/tmp/r bs=64k skip=2 2>/dev/null | cmp - /tmp/tail || die "discard went too far"

say disconnect
nvme disconnect -n "$NQN512"
wait_until 10 gone "$NQN512"
nvme disconnect -n "$NQN"
wait_until 10 gone "$NQN"

say header and data digests
for digests in --hdr-digest --data-digest "--hdr-digest --data-digest"; do
	connect "$NQN" $digests
	dev=$(device_of "$NQN")
	for bs in 4k 128k 1m; do verified_io "$dev" "$bs" 16 4m; done
	nvme disconnect -n "$NQN"
	wait_until 10 gone "$NQN"
done
say done
