#!/bin/busybox sh
# The machine's first and only process: prepares, runs /work.sh, tells its result, ends.
/bin/busybox echo "the machine is up"
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /var/log /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs security /sys/kernel/security
mount -t debugfs debug /sys/kernel/debug
ln -sf /proc/self/fd /dev/fd
mkdir -p /run/netns
ip link set lo up
while read -r module; do
    insmod "/modules/$module" || echo "cannot load $module"
done </modules/order
# Not the shell that runs this: busybox prefers its own `ip` and the like to those in PATH.
/bin/sh /work.sh </dev/null
code=$?
echo
echo "MARKER $code"
# What the console still holds must be out before the machine is.
sleep 1
poweroff -f
