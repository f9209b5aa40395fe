# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The images of our own tests and demos. In a node they are there from the start; names end in a tag
# other than `latest`, so nothing pulls them again.

tree=$work/pause
mkdir -p "$tree"
cp /usr/bin/catatonit "$tree/pause"
image pause "$tree" --config.entrypoint /pause --config.entrypoint=-P

tree=$work/busybox
busybox "$tree"
image busybox "$tree" --config.cmd sh

for name in pause busybox; do
    preload "$name" "localhost/magnetar/$name:1"
    publish "$name" "magnetar/$name:1"
done
