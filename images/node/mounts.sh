# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The kernel's filesystems that every node has, whichever its form.

# mount_kernel ROOT - all but those on /dev itself and on /sys/fs/cgroup.
mount_kernel() {
    mount -t proc proc "$1/proc"
    mount -t sysfs sysfs "$1/sys"
    mount -t tmpfs -o mode=755 tmpfs "$1/run"
    mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
}

# furnish_dev ROOT - what /dev has besides the nodes of devices.
furnish_dev() {
    local n
    mkdir -p "$1"/dev/{pts,shm,mqueue}
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$1/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
    mount -t mqueue mqueue "$1/dev/mqueue"
    ln -sfn pts/ptmx "$1/dev/ptmx"
    ln -sfn /proc/self/fd "$1/dev/fd"
    for n in 0:stdin 1:stdout 2:stderr; do ln -sfn "/proc/self/fd/${n%:*}" "$1/dev/${n#*:}"; done
}
