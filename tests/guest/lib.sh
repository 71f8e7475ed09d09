# What the guest's scripts share. Environment: ADDR, PORT (the target as seen from here), and the NQNs that each script names.
# A line that starts with "@host " asks the machine outside to do something; the script then waits for the effect.
set -eu
modprobe nvme-tcp

say() { echo "## $(cut -d. -f1 /proc/uptime) s: $*"; }
die() {
	echo "FAILED: $*"
	exit 1
}

# A busy machine outside may not be scheduled for seconds, hence a long keep-alive timeout.
connect() { # NQN [further options of nvme connect]
	local nqn=$1
	shift
	nvme connect -t tcp -a "$ADDR" -s "$PORT" -n "$nqn" --keep-alive-tmo=15 "$@"
}

controller_of() { # NQN: nvmeX of its controller
	local dir
	for dir in /sys/class/nvme/nvme*; do
		[ -e "$dir/subsysnqn" ] && [ "$(cat "$dir/subsysnqn")" = "$1" ] && basename "$dir" && return
	done
	return 1
}

device_of() { # NQN: waits for the block device of its first namespace, and prints its path
	local dir block i
	for i in $(seq 300); do
		for dir in /sys/class/nvme-subsystem/nvme-subsys*; do
			[ -e "$dir/subsysnqn" ] && [ "$(cat "$dir/subsysnqn")" = "$1" ] || continue
			for block in "$dir"/nvme*n*; do
				# Of a multipath device only the head is named like this.
				case ${block##*/} in *c*n*) continue ;; esac
				[ -b "/dev/${block##*/}" ] && echo "/dev/${block##*/}" && return
			done
		done
		sleep 0.1
	done
	die "no block device for $1"
}

wait_until() { # SECONDS COMMAND...
	local seconds=$1 i
	shift
	for i in $(seq $((seconds * 5))); do
		"$@" && return
		sleep 0.2
	done
	die "waited $seconds s in vain for: $*"
}

gone() { ! controller_of "$1" >/dev/null; }
live() { [ "$(cat "/sys/class/nvme/$1/state")" = live ]; }

verified_io() { # DEVICE BLOCK_SIZE DEPTH SIZE [further options of fio]
	local device=$1 bs=$2 depth=$3 size=$4
	shift 4
	fio --name=verify --filename="$device" --ioengine=libaio --direct=1 --rw=randwrite --bs="$bs" --iodepth="$depth" --size="$size" \
		--verify=crc32c --verify_fatal=1 --do_verify=1 --verify_backlog=256 --randseed="$depth" --output-format=terse "$@" >/tmp/fio.out 2>&1 ||
		{ cat /tmp/fio.out; die "fio on $device, $bs, depth $depth"; }
}
