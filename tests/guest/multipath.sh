#!/bin/sh
# A host with a path to each node ($PORT, $PORT1, $PORT2) of a volume with three replicas ($NQN), by the kernel's own multipath: nodes that do not coordinate
# forward; the one that coordinates is killed during verified I/O, which goes on.
. /lib.sh

[ "$(cat /sys/module/nvme_core/parameters/multipath)" = Y ] || die "this kernel has no native multipath"

states() { # of all paths, as the kernel has them
	local state
	for state in /sys/class/nvme/nvme*/nvme*c*n*/ana_state; do
		[ -e "$state" ] && cat "$state"
	done | sort | tr '\n' ' '
}
paths_are() { [ "$(states)" = "$1" ]; }
path_works() { # PORT
	local ctrl
	for ctrl in /sys/class/nvme/nvme*; do
		grep -q "trsvcid=$1\b" "$ctrl/address" 2>/dev/null && live "${ctrl##*/}" && return
	done
	return 1
}

say "the only path is to a node that forwards"
PORT=$PORT1 connect "$NQN" --ctrl-loss-tmo=600
dev=$(device_of "$NQN")
wait_until 30 paths_are "non-optimized "
verified_io "$dev" 4k 8 4m
verified_io "$dev" 64k 4 16m
dd if=/dev/urandom of=/tmp/r bs=64k count=16 2>/dev/null
dd if=/tmp/r of="$dev" bs=1M oflag=direct conv=fsync 2>/dev/null || die "a write by the forwarding path"
nvme write-zeroes "$dev" --start-block=256 --block-count=15 >/dev/null || die "zeroes by the forwarding path"
nvme dsm "$dev" --ad --slbs=512 --blocks=16 >/dev/null || die "a discard by the forwarding path"
nvme flush "$dev" >/dev/null || die "a flush by the forwarding path"

say "the other paths"
connect "$NQN" --ctrl-loss-tmo=600
PORT=$PORT2 connect "$NQN" --ctrl-loss-tmo=600
wait_until 30 paths_are "non-optimized non-optimized optimized "
dd if="$dev" bs=1M count=1 iflag=direct 2>/dev/null | cmp - /tmp/r || die "what one path wrote, another reads"

say "the node that coordinates is killed during verified I/O"
verified_io "$dev" 4k 16 16m --time_based --runtime=60 --continue_on_error=none &
io=$!
sleep 10
echo "@host kill-coordinator"
wait $io || die "I/O failed when the coordinator was killed"
dd if="$dev" bs=1M count=1 iflag=direct 2>/dev/null >/dev/null || die "a read after that"

say "it comes back"
echo "@host revive"
wait_until 120 path_works "$PORT"
wait_until 60 paths_are "non-optimized non-optimized optimized "
verified_io "$dev" 4k 8 8m
nvme disconnect -n "$NQN"
say done
