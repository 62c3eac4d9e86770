#!/bin/busybox sh
# The first and only process of a virtual machine: runs every test program and tells the host what became of it.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracing /sys/kernel/tracing
ip link set lo up
echo "dosguard-vm: kernel $(uname -r)"
cd /tests
for test in *; do
    echo "dosguard-vm: begin $test"
    "./$test" --color never --show-output
    echo "dosguard-vm: end $test $?"
done
echo "dosguard-vm: done"
poweroff -f
