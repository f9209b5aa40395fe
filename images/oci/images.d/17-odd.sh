# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# An image as people have them and nobody makes them on purpose: links whose ends are missing, where
# containerd or a pod mounts a file, and programs that are none. Made on a machine with
# systemd-resolved, /etc/resolv.conf is such a link.

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

# What tests/e2e/tests/e2e/images_table asks about: more links, users with homes, directories and
# programs with rights of their own.
printf '%s\n' someone:x:2000:2000:someone:/srv/someone:/bin/sh homeless:x:2001:2001::: >>"$tree/etc/passwd"
printf '%s\n' someone:x:2000: extra:x:2500:someone more:x:2600:someone,homeless >>"$tree/etc/group"
mkdir -p "$tree"/{private,setgid,masked,masked2,var/empty,srv/someone}
chown 42:42 "$tree/private" && chmod 700 "$tree/private"
chown 0:2500 "$tree/setgid" && chmod 7755 "$tree/setgid"
chown 2000:2000 "$tree/srv/someone" && chmod 750 "$tree/srv/someone"
echo secret | tee "$tree/masked/word" "$tree/masked2/word" >"$tree/secret"
ln -s /secret "$tree/link-to-secret"
ln -s /tmp/none/there "$tree/jump"
ln -s /jump/more/file "$tree/etc/through"
ln -s ../../../../../../srv/outside "$tree/escape"
ln -s loop-b "$tree/loop-a"
ln -s loop-a "$tree/loop-b"
ln -s /srv/app "$tree/place"
ln -s /srv/nowhere/deep "$tree/dangling"
ln -s /srv/app/hello "$tree/srv/app/link-to-hello"
printf '#!/bin/sh\necho hello "$@"\n' | tee "$tree"/srv/app/{hello,not-executable,only-root} >/dev/null
: >"$tree/srv/app/empty"
head -c 100 "$tree/bin/busybox" >"$tree/srv/app/cut"
chmod 755 "$tree"/srv/app/{hello,empty,cut}
chmod 644 "$tree/srv/app/not-executable"
chmod 700 "$tree/srv/app/only-root"
# A setuid program of one kind only: busybox gives the rights up in most of its applets.
with_libraries "$tree" /usr/bin/cat
mv "$tree/usr/bin/cat" "$tree/srv/app/show"
chmod 4755 "$tree/srv/app/show"
echo hidden >"$tree/root-only" && chmod 600 "$tree/root-only"
image odd "$tree" --config.cmd sh
preload odd localhost/magnetar/odd:1

# The same with a configuration that says everything a container can leave out.
variant odd-configured odd --config.user someone:extra --config.workingdir /from/image --config.entrypoint /srv/app/hello \
    --config.cmd 'from the image' --config.env FROM=image
preload odd-configured localhost/magnetar/odd-configured:1

# The same where a directory of the runtime's own is a link.
for name in proc sys dev; do
    variant "odd-$name" odd
    mkdir -p "$work/links" && ln -s /srv/app "$work/links/$name"
    umoci insert --image "$layouts/odd-$name:it" --opaque "$work/links/$name" "/$name"
    preload "odd-$name" "localhost/magnetar/odd-$name:1"
done

# Nothing but programs: no directory that a runtime mounts something on, and no account.
tree=$work/bare
mkdir -p "$tree/bin"
cp /usr/bin/busybox "$tree/bin/busybox"
for name in sh cat ls stat id mount awk sort; do ln "$tree/bin/busybox" "$tree/bin/$name"; done
image bare "$tree" --config.cmd sh
preload bare localhost/magnetar/bare:1
