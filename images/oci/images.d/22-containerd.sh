# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Stand-ins for the images of containerd's own integration suite, under the names it knows them by,
# less the registry's host. Each has what the tests look for. The trees and images named here are
# those of 20-critest.sh.

publish public-pause pause:3.10.2

# With a user and groups that tests name.
tree=$work/containerd-busybox
cp -a "$work/critest-busybox" "$tree"
echo daemon:x:1:1:daemon:/usr/sbin:/bin/false >>"$tree/etc/passwd"
printf '%s\n' daemon:x:1: wheel:x:10:root >>"$tree/etc/group"
image containerd-busybox "$tree" --config.cmd sh
publish containerd-busybox containerd/busybox:1.36

# Its shell is a symbolic link that leads out of a directory which is mounted alone.
tree=$work/alpine
busybox "$tree"
ln -sf /bin/busybox "$tree/bin/sh"
echo 'NAME="Alpine Linux"' >"$tree/etc/os-release"
image alpine "$tree" --config.cmd sh
publish alpine containerd/alpine:3.14.0

# What `stress` does there: it takes 100 MiB and keeps them. This is dd's buffer; nobody reads from
# the pipe.
tree=$work/resource-consumer
cp -a "$work/critest-busybox" "$tree"
cat >"$tree/bin/stress" <<'END'
#!/bin/sh
dd if=/dev/zero bs=104M count=1 2>/dev/null | sleep 30
END
chmod 755 "$tree/bin/stress"
image resource-consumer "$tree" --config.cmd sleep --config.cmd=3600
publish resource-consumer e2e-test-images/resource-consumer:1.10

# Volumes with a file each, of names that must be taken as they are.
tree=$work/volume-copy-up
cp -a "$work/critest-busybox" "$tree"
mkdir -p "$tree"/{test_dir,C:/weird_test_dir,:colon_prefixed}
tee "$tree"/{test_dir/test_file,C:/weird_test_dir/weird_test_file,:colon_prefixed/colon_prefixed_file} >/dev/null <<<test_content
image volume-copy-up "$tree" --config.cmd sh \
    --config.volume /test_dir --config.volume C:/weird_test_dir --config.volume /:colon_prefixed
publish volume-copy-up containerd/volume-copy-up:2.2

# A volume that belongs to nobody.
tree=$work/volume-ownership
cp -a "$work/critest-busybox" "$tree"
mkdir "$tree/test_dir"
chown 65534:65534 "$tree/test_dir"
image volume-ownership "$tree" --config.cmd sh --config.volume /test_dir
publish volume-ownership containerd/volume-ownership:2.1

# nginx that opens its standard error again by its name, as the real image's does, and says what it
# starts.
variant nginx-notice nginx --config.cmd nginx --config.cmd=-g --config.cmd 'daemon off; error_log /dev/stderr notice;'
publish nginx-notice containerd/nginx:1.27.0
