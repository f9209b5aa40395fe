# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Where everything lives. Nothing is ever written into the checkout: builds go to the cache, keyed
# by a hash of their recipe, and a running node keeps its state under `run/` in the same cache.

# shellcheck disable=SC2034 # used by the files that source this one
here=${BASH_SOURCE[0]%/*}
checkout=$(cd "$here/../.." && pwd)
cache=${MAGNETAR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/magnetar}
suite=forky

say() { printf 'node: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# recipe FILE… - the hash of everything that a result depends on: the files' names and contents.
recipe() {
    (cd "$checkout" && find "$@" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
}

rootfs_recipe() { recipe images/node/packages images/node/rootfs.sh; }
oci_recipe() { recipe images/oci images/node/packages images/node/rootfs.sh images/node/scratch.sh images/node/images.sh; }
tools_recipe() { recipe tests/tools images/node/tools.sh; }
kubernetes_recipe() {
    {
        recipe tests/kubernetes/{build,go.mod,go.sum,main.go}
        go env GOVERSION 2>/dev/null || true
    } | sha256sum | cut -c1-16
}
vm_recipe() {
    {
        rootfs_recipe
        [[ ! -d $(tools_dir) ]] || tools_recipe
        recipe images/node/vm/image images/node/scratch.sh images/node/vm-image.sh
    } | sha256sum | cut -c1-16
}

rootfs_dir() { printf '%s/node/%s' "$cache" "$(rootfs_recipe)"; }
oci_dir() { printf '%s/oci/%s' "$cache" "$(oci_recipe)"; }
tools_dir() { printf '%s/tools/%s' "$cache" "$(tools_recipe)"; }
kubernetes_dir() { printf '%s/kubernetes/%s' "$cache" "$(kubernetes_recipe)"; }
vm_dir() { printf '%s/vm/%s' "$cache" "$(vm_recipe)"; }

# build_once DIR FUNCTION - has FUNCTION fill a fresh directory and gives it its name when it is
# complete. A half-built DIR can therefore not exist, and two builds of the same thing do not
# collide. FUNCTION runs in the caller's shell: `set -e` is off inside a condition, so it must not
# be called in one.
build_once() {
    local dir=$1 function=$2 lock
    if [[ ! -d $dir ]]; then
        mkdir -p "${dir%/*}"
        exec {lock}>"$dir.lock"
        flock "$lock"
        if [[ ! -d $dir ]]; then
            rm -rf "$dir.part"
            mkdir -p "$dir.part"
            "$function" "$dir.part"
            mv -T "$dir.part" "$dir"
            prune "$dir"
        fi
        exec {lock}>&-
    fi
    touch "$dir"
}

# prune DIR - removes DIR's siblings that no node runs on and that nobody has used for a day.
# Younger ones stay: another checkout on the same machine may be working with them.
prune() {
    local old
    while IFS= read -r -d '' old; do
        grep -qsF "=$old" "$cache"/run/*/uses && continue
        (
            exec {lock}>"$old.lock"
            flock -n "$lock" || exit 0
            rm -rf "$old" "$old.part" "$old.log" "$old.lock"
        )
    done < <(find "${1%/*}" -mindepth 1 -maxdepth 1 -type d ! -name "${1##*/}" ! -name '*.part' -mmin +1440 -print0)
}
