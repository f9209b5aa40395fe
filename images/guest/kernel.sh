# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The kernel of microVMs: Debian's cloud flavour, of the node's suite. It is fetched by an apt that
# knows nothing of the machine's own, and only unpacked. What stays is the kernel, the few modules
# that a guest loads when it boots, and those that its kernel may ask for later.

# In this order, each after what it needs. Which of them are modules differs from time to time; what
# a guest cannot do without comes first: the bus, then the shared files.
wanted=(virtio_pci fuse virtiofs vmw_vsock_virtio_transport virtio_net virtio_blk overlay)

# What the kernel loads when a container makes an interface, a rule or a queue that needs it, as it
# would on a node, and what vm-agent loads, which is the first two lines: when the first disk is
# attached, and when the machine's memory changes. Every guest has them in its memory, so: what is
# small and used in pods. Left out are, among others, file systems, bonding, ip_vs, sctp, and the
# legacy ip_tables, which the kernel never asks for (iptables has rules in nf_tables by default).
on_demand=(
    virtio_scsi sd_mod
    virtio_mem virtio_balloon
    bridge br_netfilter dummy ifb veth macvlan macvtap ipvlan ipvtap tun 8021q vrf
    vxlan geneve wireguard ipip sit ip_gre ip6_tunnel
    sch_htb sch_netem sch_tbf sch_ingress cls_u32 act_mirred
    nf_tables nf_conntrack_netlink nf_log_syslog nfnetlink_log
    ip_set ip_set_hash_ip ip_set_hash_ipport ip_set_hash_net
    nft_chain_nat nft_compat nft_ct nft_fib_inet nft_hash nft_limit nft_log nft_masq nft_nat nft_numgen nft_quota nft_redir
    nft_reject_inet nft_reject_ipv4 nft_reject_ipv6
    ipt_REJECT ip6t_REJECT xt_MASQUERADE xt_REDIRECT xt_LOG xt_addrtype xt_comment xt_connmark xt_conntrack xt_limit xt_mark
    xt_multiport xt_nat xt_set xt_state xt_statistic xt_tcpudp
)

# Without these, the module makes an interface of its own, by a name that a container may want: as
# Debian has them.
declare -A parameters=([dummy]=numdummies=0 [ifb]=numifbs=0)

kernel_dir() {
    printf '%s/guest/%s\n' "$cache" "$({ echo "$suite"; recipe images/guest/kernel.sh images/guest/package.sh images/guest/src; } | sha256sum | cut -c1-16)"
}

# fetch APT DIR - unpacks the kernel's packages. Only those with a version in their name hold
# something: the kernel, its modules, and the list of what is built in are packages of their own.
fetch() {
    local apt=$1 dir=$2 names
    APT_CONFIG=$apt/apt.conf apt-get -qq update
    names=$(APT_CONFIG=$apt/apt.conf apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts \
        --no-breaks --no-replaces --no-enhances linux-image-cloud-amd64 |
        grep -E '^linux-(image|binary|modules|base)-[0-9].*-cloud-amd64$' | sort -u) || fail "no cloud kernel in $suite"
    mapfile -t names <<<"$names"
    (cd "$apt/archives" && APT_CONFIG=$apt/apt.conf apt-get download -qq "${names[@]}")
    find "$apt/archives" -name '*.deb' -exec dpkg-deb -x {} "$dir" \;
}

# files ROOT RELEASE MODULE… - the modules' files and those of what they need, in the order of
# loading. The machine's own configuration is not read.
files() {
    local root=$1 release=$2 module answer
    shift 2
    for module in "$@"; do
        answer=$(/usr/sbin/modprobe --config /dev/null --dirname "$root" --set-version "$release" --show-depends "$module")
        [[ $answer != builtin* ]] || say "$module is built in"
        printf '%s\n' "$answer"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

# aliases ROOT RELEASE FILE… - a line for each name that the kernel may have for one of these
# modules: the name, then the files to load, in order, each followed by its parameters. Patterns are
# for devices, and left out; "-" is written "_", which to modprobe is the same.
aliases() {
    local root=$1 release=$2 file module needs part load
    shift 2
    for file in "$@"; do
        module=$(basename "$file" .ko.xz)
        module=${module//-/_}
        needs=$(files "$root" "$release" "$module")
        load=
        for part in $needs; do
            part=${part##*/}
            load+=" $part"
            load+=${parameters[${part%.ko.xz}]:+ ${parameters[${part%.ko.xz}]}}
        done
        {
            echo "$module"
            awk -v module="$module" '$3 == module && $2 !~ /[*?[]/ { print $2 }' "$root/lib/modules/$release/modules.alias"
        } | tr - _ | sed "s|\$|$load|"
    done | LC_ALL=C sort -u
}

build_kernel() {
    local dir=$1 work=$1/work modules release names later
    say "fetching a kernel from $(mirror) $suite"
    private_apt "$work/apt"
    fetch "$work/apt" "$work"
    ln -s usr/lib "$work/lib" # where modprobe looks, whether or not its Debian has it merged
    modules=("$work"/usr/lib/modules/*)
    release=${modules[0]##*/}
    "$tool" kernel "${modules[0]}/vmlinuz" "$dir/vmlinux"
    /usr/sbin/depmod --basedir "$work" "$release"
    names=$(files "$work" "$release" "${wanted[@]}")
    mapfile -t names <<<"$names"
    mkdir "$dir/modules"
    # Unpacked here, once, and not by an emulated processor at every boot.
    "$tool" modules "$dir/modules" "${names[@]}"
    later=$(files "$work" "$release" "${on_demand[@]}")
    mapfile -t later <<<"$later"
    mkdir "$dir/modules/later"
    # Packed as they are: the kernel can unpack them, and few guests ever load one.
    cp "${later[@]}" "$dir/modules/later/"
    aliases "$work" "$release" "${later[@]}" >"$dir/modules/later/aliases"
    rm -rf "$work"
    say "$release with the modules $(cd "$dir/modules" && echo *.ko), and ${#later[@]} for later"
    seal "$dir"
}
