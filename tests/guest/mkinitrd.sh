#!/bin/bash
# Builds an initramfs for the test guest out of what the host has installed.
#
#   mkinitrd.sh -o OUT [-k KERNEL_RELEASE]      base archive: programs, modules, /init
#   mkinitrd.sh -O -o OUT FILE:GUESTPATH...     overlay with these files only (the kernel takes archives one after another)
#
# Debian packages: busybox-static nvme-cli fio cpio kmod e2fsprogs util-linux coreutils dash linux-image-amd64.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

out= kver= overlay=0
while getopts o:k:O o; do
	case $o in
	o) out=$OPTARG ;; k) kver=$OPTARG ;; O) overlay=1 ;;
	*) sed -n '2,8p' "$0" >&2; exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ -n "$out" ] || { echo "mkinitrd: -o OUT is needed" >&2; exit 2; }

root=$(mktemp -d "${TMPDIR:-/tmp}/keelblock-initrd.XXXXXX")
trap 'rm -rf "$root"' EXIT

copy_libs() { # the shared libraries, and the loader, of an ELF file
	{ ldd "$1" 2>/dev/null | grep -o '/[^ )]*' || true; } | while read -r lib; do
		[ -e "$lib" ] && [ ! -e "$root$lib" ] || continue
		mkdir -p "$root$(dirname "$lib")"
		cp -L "$lib" "$root$lib"
	done
}

add_programs() {
	local name source
	for name; do
		source=$(command -v "$name") || { echo "mkinitrd: $name is not installed" >&2; exit 1; }
		cp -L "$source" "$root/usr/bin/$name"
		copy_libs "$source"
	done
}

if [ $overlay = 0 ]; then
	[ -n "$kver" ] && [ -d "/lib/modules/$kver" ] || { echo "mkinitrd: no modules of kernel '$kver'" >&2; exit 1; }
	mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,etc/nvme,dev,proc,sys,tmp,run,mnt,lib,lib64}
	cp -L "$(command -v busybox)" "$root/bin/busybox"
	copy_libs "$(command -v busybox)"
	add_programs nvme fio dd cmp timeout blockdev mkfs.ext4 e2fsck blkdiscard sha256sum
	# Debian's busybox shell runs its own applets before the programs in PATH; dash does not.
	cp -L "$(command -v dash)" "$root/bin/sh"
	copy_libs "$(command -v dash)"
	cp -L /etc/mke2fs.conf "$root/etc/" 2>/dev/null || true
	# Opened at run time, so no program's list of libraries has it.
	for lib in /lib/*/libgcc_s.so.1 /usr/lib/*/libgcc_s.so.1; do
		if [ -e "$lib" ]; then
			mkdir -p "$root$(dirname "$lib")"
			cp -L "$lib" "$root$lib"
		fi
	done
	for module in nvme-tcp virtio_pci virtio_net virtio-rng crc32c-intel crc32c_generic ext4; do
		modprobe -S "$kver" --show-depends "$module" 2>/dev/null | awk '$1 == "insmod" { print $2 }' || true
	done | sort -u | while read -r file; do
		mkdir -p "$root$(dirname "$file")"
		cp "$file" "$root$file"
	done
	cp "/lib/modules/$kver"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$kver/" 2>/dev/null || true
	depmod -b "$root" "$kver"
	install -m 755 "$(dirname "$0")/init" "$root/init"
fi

for pair; do
	source=${pair%%:*} target=$root${pair#*:}
	mkdir -p "$(dirname "$target")"
	cp -L --preserve=mode "$source" "$target"
done

(cd "$root" && find . -mindepth 1 | cpio -o -H newc -R 0:0 --quiet) >"$out.part"
mv "$out.part" "$out"
