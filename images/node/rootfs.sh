# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Builds the node's root filesystem: a minimal Debian by debootstrap, then the packages by apt
# inside it. (debootstrap's own resolver stumbles over virtual packages.) The package sources,
# proxies and certificates are those that this machine already has.

# mirror - the Debian archive that this machine's own apt uses.
mirror() {
    local uri
    uri=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 == "Debian" && $1 !~ /security/ { print $1; exit }')
    # Before the first `apt-get update` apt knows no origin: take the first URI of the sources
    # themselves.
    [[ $uri ]] || uri=$(sed -n -E 's/^(URIs:|deb( \[[^]]*\])?) *([a-z+]+:[^ ]*debian\/?)( .*)?$/\3/p' \
        /etc/apt/sources.list.d/debian*.sources /etc/apt/sources.list.d/*.list /etc/apt/sources.list 2>/dev/null | head -n 1)
    [[ $uri ]] || fail "no Debian archive in this machine's apt sources"
    printf '%s' "${uri%/}"
}

need_debootstrap() {
    command -v debootstrap >/dev/null && return
    say "installing debootstrap"
    apt-get install -qq -y --no-install-recommends debootstrap >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -qq -y --no-install-recommends debootstrap >/dev/null; }
}

# configure_apt ROOT MIRROR - small and quick: no recommends, no documentation, no fsync after every
# file.
configure_apt() {
    local root=$1 mirror=$2 keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    rm -f "$root"/etc/apt/sources.list
    printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" "$keyring" "$mirror" unstable \
        >"$root/etc/apt/sources.list"
    cat >"$root/etc/apt/apt.conf.d/10node" <<EOF
APT::Default-Release "$suite";
APT::Install-Recommends "false";
APT::Install-Suggests "false";
Acquire::Languages "none";
// A mirror may be a snapshot whose Release file is past its date; the signature is still checked.
Acquire::Check-Valid-Until "false";
EOF
    apt-config dump | grep -E '^Acquire::(http|https|ftp)::' >"$root/etc/apt/apt.conf.d/20host" || true
    cat >"$root/etc/dpkg/dpkg.cfg.d/10node" <<'EOF'
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
EOF
    # Services must not start while they are installed.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
}

# trust_host ROOT - the certificates that were added to this machine by hand count in the node too.
trust_host() {
    local root=$1
    [[ -d /usr/local/share/ca-certificates ]] || return 0
    mkdir -p "$root/usr/local/share/ca-certificates"
    cp -a /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
}

# in_chroot ROOT CMD… - with /proc and /dev, which packages' scripts want, in namespaces of their
# own so that nothing stays mounted whatever happens. The network is the machine's.
in_chroot() {
    local root=$1
    shift
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --mount --pid --uts --ipc --fork --kill-child -- bash -ec '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount -t sysfs -o ro sysfs "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs tmpfs "$root/run"
        : >>"$root/etc/resolv.conf"
        mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
        exec chroot "$root" "$@"' in_chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive ${http_proxy:+"http_proxy=$http_proxy"} ${https_proxy:+"https_proxy=$https_proxy"} "$@"
}

# fetch_kernels ROOT DIR - unpacks (never installs: no initramfs, no boot loader) the cloud kernel
# and the full one for the node's VM form and for guests, each as Debian ships it:
# DIR/<flavour>/{boot,usr/lib/modules}.
fetch_kernels() {
    local root=$1 dir=$2 flavour names
    for flavour in cloud-amd64 amd64; do
        names=$(in_chroot "$root" apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts \
            --no-breaks --no-replaces --no-enhances "linux-image-$flavour" |
            grep -E "^linux-(image|modules|binary)-[0-9].*[0-9+a-z]-$flavour\$" | sort -u)
        mapfile -t names <<<"$names"
        rm -rf "$root/tmp/kernel"
        mkdir -p "$dir/${flavour%-amd64}" "$root/tmp/kernel"
        # shellcheck disable=SC2016 # expanded by the inner shell
        in_chroot "$root" sh -ec 'cd /tmp/kernel && apt-get download -qq "$@"' sh "${names[@]}"
        find "$root/tmp/kernel" -name '*.deb' -exec dpkg-deb -x {} "$dir/${flavour%-amd64}" \;
        rm -rf "$root/tmp/kernel"
    done
}

build_rootfs() {
    local dir=$1 root=$1/rootfs mirror packages log=${1%.part}.log
    need_debootstrap
    mirror=$(mirror)
    say "building the root filesystem from $mirror $suite (log: $log)"
    # Older debootstraps do not know newer suites: all of them are built by the script of sid.
    debootstrap --variant=minbase --include=ca-certificates --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
        "$suite" "$root" "$mirror" sid >"$log" 2>&1 || fail "debootstrap failed, see $log"
    configure_apt "$root" "$mirror"
    trust_host "$root"
    mapfile -t packages < <(grep -v -E '^(#|$)' "$here/packages")
    in_chroot "$root" apt-get update -q >>"$log" 2>&1 || fail "apt-get update failed, see $log"
    in_chroot "$root" apt-get install -q -y "${packages[@]}" >>"$log" 2>&1 || fail "apt-get install failed, see $log"
    in_chroot "$root" update-ca-certificates >>"$log" 2>&1
    fetch_kernels "$root" "$dir/kernels" >>"$log" 2>&1
    in_chroot "$root" apt-get clean
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/* "$root"/usr/share/{doc,man,info}/* "$root"/var/log/*
    rm -rf "$root"/usr/sbin/policy-rc.d "$root"/etc/nginx/sites-enabled/* "$root"/etc/cni
    # Each virtual machine has a host key of its own (vm/machine).
    rm -f "$root"/etc/ssh/ssh_host_*
    # Places where a node mounts something: the lower layer has them, so that an upper one need not.
    mkdir -p "$root"/magnetar "$root"/var/lib/{containerd,registry} "$root"/usr/local/libexec
    : >"$root/etc/resolv.conf"
}
