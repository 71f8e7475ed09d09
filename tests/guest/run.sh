#!/bin/bash
# Boots Debian's kernel in QEMU without hardware help, runs SCRIPT in it as root, shows what it prints as it comes, and exits with
# its status.
#
#   run.sh [-t SECONDS] [-e NAME=VALUE]... SCRIPT [FILE:GUESTPATH]...
#
#   -t   time limit (default 600)        -e   environment of the script (repeatable)
#   GUEST_INITRD, if set: a base archive that is made when it is not there, and used again.
#
# Exits with 124 after the time limit, and with 125 if the guest died or could not be started; the end of its console then goes to
# standard error. The guest reaches this machine's loopback as 10.0.2.2. Nothing timed in it means anything.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)

limit=600 envs=()
while getopts t:e: o; do
	case $o in
	t) limit=$OPTARG ;; e) envs+=("$OPTARG") ;;
	*) sed -n '2,12p' "$0" >&2; exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -ge 1 ] && [ -f "$1" ] || { echo "run.sh: a script is needed" >&2; exit 2; }
script=$1
shift

kver=
for release in $(ls /boot | sed -n 's/^vmlinuz-//p' | sort -V); do
	[ -d "/lib/modules/$release" ] && kver=$release
done
[ -r "/boot/vmlinuz-$kver" ] || { echo "run.sh: no kernel in /boot with modules in /lib/modules" >&2; exit 125; }

work=$(mktemp -d "${TMPDIR:-/tmp}/keelblock-guest.XXXXXX")
pid=
cleanup() {
	[ -n "$pid" ] && kill "$pid" 2>/dev/null && wait "$pid"
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

base=${GUEST_INITRD:-$work/base.cpio}
[ -e "$base" ] || "$here/mkinitrd.sh" -k "$kver" -o "$base" || exit 125

uuid=$(cat /proc/sys/kernel/random/uuid)
{
	echo "HOST_UUID=$uuid"
	for pair in ${envs[@]+"${envs[@]}"}; do
		value=${pair#*=}
		printf "%s='%s'\n" "${pair%%=*}" "${value//\'/\'\\\'\'}"
	done
} >"$work/guest.env"
install -m 755 "$script" "$work/script"
"$here/mkinitrd.sh" -O -o "$work/over.cpio" "$work/script:/script" "$work/guest.env:/etc/guest.env" "$@" || exit 125
cat "$base" "$work/over.cpio" >"$work/initrd.cpio" || exit 125

: >"$work/status"
timeout -k 5 "$limit" qemu-system-x86_64 -machine q35,accel=tcg -cpu max -smp 2 -m 1024 \
	-display none -nodefaults -no-user-config -no-reboot -monitor none \
	-kernel "/boot/vmlinuz-$kver" -initrd "$work/initrd.cpio" \
	-append "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check tsc=nowatchdog random.trust_cpu=on" \
	-serial "file:$work/console" -serial stdio -serial "file:$work/status" \
	-device virtio-rng-pci -netdev user,id=n0 -device virtio-net-pci,netdev=n0,romfile= \
	</dev/null 2>"$work/qemu.err" &
pid=$!
wait "$pid"
qemu=$?
pid=
status=$(tr -cd 0-9 <"$work/status")
if [ "$status" = 0 ]; then exit 0; fi
{
	case $qemu in
	124 | 137) echo "run.sh: time limit of $limit s" ;;
	*) echo "run.sh: status '$status', QEMU $qemu" ;;
	esac
	cat "$work/qemu.err"
	echo "--- end of the guest's console:"
	tail -n 60 "$work/console"
} >&2
case $qemu in 124 | 137) exit 124 ;; esac
exit "${status:-125}"
