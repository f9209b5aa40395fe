# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# An image as people have them and nobody makes them on purpose: links whose ends are missing, where containerd or a pod
# mounts a file, and programs that are none. Made on a machine with systemd-resolved, /etc/resolv.conf is such a link.

tree=$work/odd
busybox "$tree"
mkdir -p "$tree"/{etc/static,opt/app/.data,var/lib,vendor/app,srv/app}
ln -s /run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
ln -s ../../../../../etc/static/hostname "$tree/etc/hostname"
ln -s /etc/static/hosts "$tree/etc/hosts"
ln -s /usr/share/zoneinfo/Nowhere/City "$tree/etc/localtime"
ln -s /opt/app/.data "$tree/var/lib/app"
ln -s /var/lib/app/later "$tree/vendor/app/later"
printf 'echo no interpreter\n' >"$tree/srv/app/no-interpreter"
printf '#!/no/such/interpreter\necho x\n' >"$tree/srv/app/bad-interpreter"
chmod 755 "$tree"/srv/app/*
image odd "$tree" --config.cmd sh
preload odd localhost/magnetar/odd:1
