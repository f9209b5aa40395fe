# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Builds the OCI images by running images/oci/build in a throw-away overlay of the root filesystem, so that it has
# umoci, skopeo and a registry, and an empty network of its own.

build_images() {
    local dir=$1 log=${1%.part}.log
    say "building the OCI images (log: $log)"
    mkdir -p "$dir/scratch"
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --mount --pid --net --fork --kill-child -- bash -ec '
        lower=$1 recipe=$2 out=$3 root=$3/scratch
        mount -t tmpfs tmpfs "$root"
        mkdir "$root"/{upper,work,root}
        mount -t overlay overlay -o "lowerdir=$lower,upperdir=$root/upper,workdir=$root/work" "$root/root"
        root=$root/root
        mkdir "$root"/{recipe,out}
        mount --bind "$recipe" "$root/recipe"
        mount --bind "$out" "$root/out"
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs tmpfs "$root/tmp"
        ip link set lo up
        exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 /recipe/build /out
    ' build_images "$(rootfs_dir)/rootfs" "$checkout/images/oci" "$dir" >"$log" 2>&1 || fail "images failed, see $log"
    rmdir "$dir/scratch"
}
