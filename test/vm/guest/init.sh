#!/bin/busybox sh
# The first process of a guest: mounts the host's root read-only, the project and a writable folder, runs the script that
# the kernel command line names, and ends the machine with its exit code.
#
# QEMU ends with 2 * code + 1 when `code` is written to the port of its isa-debug-exit device.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mkdir -p /bin /sbin
/bin/busybox --install -s /bin

finish() {
  sync
  printf "\\$(printf '%03o' "$1")" | dd of=/dev/port bs=1 seek=1281 conv=notrunc 2>/dev/null
  echo "guest: no exit device" >&2
  poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
  insmod "/modules/$module.ko" || echo "guest: module $module does not load" >&2
done < /modules/order

nine="trans=virtio,version=9p2000.L,msize=512000"
mount -t 9p -o "$nine,ro,cache=loose" root /new || finish 100
for folder in tmp run; do mount -t tmpfs -o size=512m tmpfs "/new/$folder" || finish 101; done
mkdir -p /new/run/project /new/run/out /new/run/lock
mount -t 9p -o "$nine,ro,cache=loose" project /new/run/project || finish 102
mount -t 9p -o "$nine,cache=none" out /new/run/out || finish 103
for folder in proc sys dev; do mount --bind "/$folder" "/new/$folder" || finish 104; done
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o size=512m tmpfs /new/dev/shm
mount -t devpts devpts /new/dev/pts
# Where mount(8) looks for its helpers, and what the guest's programs need of /sbin.
ip link set lo up
ulimit -c 0

script=$(sed -n 's/.*guest\.script=\([^ ]*\).*/\1/p' /proc/cmdline)
node=$(sed -n 's/.*guest\.node=\([^ ]*\).*/\1/p' /proc/cmdline)
export HOME=/tmp TMPDIR=/tmp LC_ALL=C.UTF-8 GUEST_NODE="$node" GUEST_ARGUMENTS="$(cat /new/run/out/arguments 2>/dev/null)"
# The host tells a machine that did not come so far from a script that failed.
: > /new/run/out/begun
case "$script" in
*.sh) chroot /new /bin/sh "/run/project/$script" ;;
*) chroot /new "$node" "/run/project/$script" ;;
esac
finish $?
