# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# A kernel of our own for microVMs: Debian's source with the configuration in own-kernel.config. All
# that a guest needs is built in, so there is no module, and it finds virtio devices by the command
# line, too, as `microvm` announces them.

own_kernel_dir() {
    # A folder of its own: what is left of other recipes of the quick one is removed within a day,
    # and this takes minutes.
    printf '%s/own-kernel/%s\n' "$cache" \
        "$({ echo "$suite"; recipe images/guest/own-kernel.sh images/guest/own-kernel.config images/guest/package.sh; } | sha256sum | cut -c1-16)"
}

# fetch_source APT DIR - unpacks the source of the suite's current kernel, and prints when Debian
# packed it, in seconds since 1970.
fetch_source() {
    local apt=$1 dir=$2 name archives
    APT_CONFIG=$apt/apt.conf apt-get -qq update
    name=$(APT_CONFIG=$apt/apt.conf apt-cache depends linux-source |
        sed -n -E 's/^ *Depends: (linux-source-[0-9.]+)$/\1/p') || fail "no kernel's source in $suite"
    (cd "$apt/archives" && APT_CONFIG=$apt/apt.conf apt-get download -qq "$name")
    dpkg-deb -x "$apt/archives/$name"_*.deb "$apt/unpacked"
    archives=("$apt"/unpacked/usr/src/linux-source-*.tar.xz)
    mkdir "$dir"
    tar -C "$dir" --strip-components=1 -xf "${archives[0]}"
    stat -c %Y "${archives[0]}"
    rm -r "$apt"
}

# configure SOURCE OBJECTS - nothing but what is asked for, and what that selects. A symbol that
# cannot be had (it was renamed, or needs another one) is silently left out by the kernel's own
# tool, and would be missed by some pod, some day.
configure() {
    local source=$1 objects=$2 asked=$guest/own-kernel.config missing
    make -s -C "$source" O="$objects" KCONFIG_ALLCONFIG="$asked" allnoconfig >/dev/null
    missing=$(grep '^CONFIG_' "$asked" | grep -vxFf "$objects/.config" | tr '\n' ' ') || true
    [[ ! $missing ]] || fail "this kernel does not give us $missing"
}

build_own_kernel() {
    local dir=$1 work=$1/work packed
    say "fetching a kernel's source from $(mirror) $suite"
    private_apt "$work/apt"
    packed=$(fetch_source "$work/apt" "$work/source")
    configure "$work/source" "$work/objects"
    say 'compiling it, which takes some minutes'
    # Who compiles it, where and when is in no kernel: the same source gives the same one.
    KBUILD_BUILD_USER=magnetar KBUILD_BUILD_HOST=magnetar KBUILD_BUILD_TIMESTAMP=$(LC_ALL=C date -u -d "@$packed") \
        nice make -s -C "$work/source" O="$work/objects" -j"$(nproc)" vmlinux >"$work/log" 2>&1 ||
        { tail -n 20 "$work/log" >&2 && fail 'the kernel did not compile'; }
    "$tool" enterable "$work/objects/vmlinux"
    strip -o "$dir/vmlinux" "$work/objects/vmlinux"
    cp "$work/objects/.config" "$dir/config"
    mkdir "$dir/modules"
    say "$(<"$work/objects/include/config/kernel.release") without modules"
    rm -rf "$work"
    seal "$dir"
}
