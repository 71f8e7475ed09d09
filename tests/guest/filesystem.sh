#!/bin/sh
# A file system lives on a volume ($NQN, and $NQN512 of 512-byte blocks): made, filled, unmounted, checked, found again by another
# connection.
. /lib.sh
modprobe ext4
for nqn in "$NQN" "$NQN512"; do
	connect "$nqn"
	dev=$(device_of "$nqn")
	say "ext4 on $dev"
	mkfs.ext4 -q -F "$dev" || die "mkfs.ext4"
	mount -t ext4 -o discard "$dev" /mnt || die "mount"
	cp -r /usr /mnt/ || die "copy"
	(cd /usr && find . -type f | sort | xargs sha256sum) >/tmp/sums
	[ -s /tmp/sums ] || die "nothing to compare"
	cp /tmp/sums /mnt/sums
	rm -r /mnt/usr/bin
	cp -r /usr/bin /mnt/usr/bin
	umount /mnt || die "umount"
	e2fsck -fn "$dev" || die "e2fsck after umount"
	nvme disconnect -n "$nqn"
	wait_until 10 gone "$nqn"
	say "found again by a new connection"
	connect "$nqn"
	dev=$(device_of "$nqn")
	mount -t ext4 "$dev" /mnt || die "mount again"
	cmp /tmp/sums /mnt/sums || die "the list of sums changed"
	(cd /mnt/usr && sha256sum -c --quiet /tmp/sums) || die "files changed"
	umount /mnt
	e2fsck -fn "$dev" || die "e2fsck at the end"
	nvme disconnect -n "$nqn"
	wait_until 10 gone "$nqn"
done
say done
