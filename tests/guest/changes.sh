#!/bin/sh
# What happens to a volume ($NQN) while a host uses it: controller resets under I/O, disconnects and reconnects, a new size, the
# target's death and return.
. /lib.sh

say "controller reset during verified I/O"
connect "$NQN"
dev=$(device_of "$NQN")
ctrl=$(controller_of "$NQN")
verified_io "$dev" 4k 16 16m --time_based --runtime=15 &
io=$!
for i in 1 2 3 4 5; do
	sleep 2
	nvme reset "/dev/$ctrl" || die "reset $i"
	wait_until 30 live "$ctrl"
done
wait $io || die "I/O failed during resets"

say "disconnect and reconnect, 20 times"
dd if=/dev/urandom of=/tmp/r bs=64k count=4 2>/dev/null
for i in $(seq 20); do
	dd if=/tmp/r of="$dev" bs=64k oflag=direct conv=fsync 2>/dev/null || die "write $i"
	nvme disconnect -n "$NQN"
	wait_until 10 gone "$NQN"
	connect "$NQN"
	dev=$(device_of "$NQN")
	dd if="$dev" bs=64k count=4 iflag=direct 2>/dev/null | cmp - /tmp/r || die "data after reconnect $i"
done
ctrl=$(controller_of "$NQN")

say "a new size is seen without reconnecting"
before=$(blockdev --getsize64 "$dev")
echo "@host resize"
grown() { [ "$(blockdev --getsize64 "$dev")" = "$NEW_SIZE" ]; }
wait_until 30 grown
echo "$before -> $(blockdev --getsize64 "$dev")"
dd if=/tmp/r of="$dev" bs=64k seek=$((before / 65536)) oflag=direct conv=fsync 2>/dev/null || die "write beyond the old size"
dd if="$dev" bs=64k skip=$((before / 65536)) count=4 iflag=direct 2>/dev/null | cmp - /tmp/r || die "data beyond the old size"

say "the target's data path is killed and comes back during I/O"
verified_io "$dev" 4k 8 16m --time_based --runtime=12 &
io=$!
sleep 2
echo "@host kill-datapath"
wait $io || die "I/O failed when the data path was killed"
wait_until 60 live "$ctrl"

say "a host that is taken off the list is disconnected, and refused"
echo "@host deny"
shut_out() { ! live "$ctrl"; }
wait_until 30 shut_out
# This kernel goes on trying; it must not get in.
for i in $(seq 25); do
	shut_out || die "a host that is not allowed came back"
	sleep 0.2
done
nvme disconnect -n "$NQN"
wait_until 30 gone "$NQN"
if connect "$NQN" 2>/dev/null; then die "a host that is not allowed was let in"; fi
echo "@host allow"
allowed() { connect "$NQN" 2>/dev/null; }
wait_until 30 allowed
dev=$(device_of "$NQN")
dd if="$dev" bs=64k count=1 iflag=direct of=/dev/null 2>/dev/null || die "read after being allowed again"
nvme disconnect -n "$NQN"
say done
