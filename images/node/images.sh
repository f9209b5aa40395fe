# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Builds the OCI images by running images/oci/build in a throw-away overlay of the root filesystem,
# so that it has umoci, skopeo and a registry, and an empty network of its own.

build_images() {
    local dir=$1 log=${1%.part}.log
    say "building the OCI images (log: $log)"
    in_scratch "$(rootfs_dir)/rootfs" "$checkout/images/oci" "$dir" /tmp/recipe/build /tmp/out >"$log" 2>&1 ||
        fail "images failed, see $log"
}
