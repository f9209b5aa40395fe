# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Builds what the node's VM form boots from, by running vm/image/build in the root filesystem with
# the tools and Debian's full kernel laid over it.

build_vm() {
    local dir=$1 log=${1%.part}.log layers
    layers=$(rootfs_dir)/kernels/amd64:$(rootfs_dir)/rootfs
    [[ ! -d $(tools_dir) ]] || layers=$(tools_dir):$layers
    say "building the virtual machine's disk (log: $log)"
    in_scratch "$layers" "$here/vm/image" "$dir" /tmp/recipe/build /tmp/out >"$log" 2>&1 || fail "the disk failed, see $log"
}
