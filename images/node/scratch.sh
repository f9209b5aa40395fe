# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Runs a recipe in a throw-away overlay of a root filesystem: with its tools, in mount, pid and
# network namespaces of its own, so that nothing stays whatever happens. What it writes outside of
# /tmp/out is gone afterwards.

# in_scratch LAYERS RECIPE OUT CMD… - LAYERS is an overlay's list of lower directories; the folder
# RECIPE is at /tmp/recipe, the folder OUT at /tmp/out.
in_scratch() {
    local layers=$1 recipe=$2 out=$3
    shift 3
    mkdir -p "$out/scratch"
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --mount --pid --net --fork --kill-child -- bash -ec '
        layers=$1 recipe=$2 out=$3 root=$3/scratch
        shift 3
        mount -t tmpfs tmpfs "$root"
        mkdir "$root"/{upper,work,root}
        mount -t overlay overlay -o "lowerdir=$layers,upperdir=$root/upper,workdir=$root/work" "$root/root"
        root=$root/root
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs tmpfs "$root/tmp"
        mkdir "$root"/tmp/{recipe,out}
        mount --bind "$recipe" "$root/tmp/recipe"
        mount --bind "$out" "$root/tmp/out"
        ip link set lo up
        exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
    ' in_scratch "$layers" "$recipe" "$out" "$@" || return
    rmdir "$out/scratch"
}
