# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Starts a node: lays out its upper directory, makes its cgroups, and runs `enter` in new
# namespaces.

# Init has its own, shorter limits; this one is for what comes before it.
start_within=600

# running NAME - whether the node's first process lives. Its pid alone would not do: pids are used
# again.
running() {
    local run=$cache/run/$1
    [[ -s $run/pidns ]] && [[ $(readlink "/proc/$(<"$run/pid")/ns/pid") == "$(<"$run/pidns")" ]]
}

# install_into ROOT SOURCE - copies the installable tree of the checkout SOURCE into a node's root,
# running or not. Programs that run are unlinked, not overwritten.
install_into() {
    local root=$1 out=$2/out part
    for part in bin libexec share; do
        [[ ! -d $out/$part ]] || {
            mkdir -p "$root/usr/local/$part"
            cp -a --remove-destination "$out/$part/." "$root/usr/local/$part/"
        }
    done
    [[ ! -d $out/etc ]] || {
        mkdir -p "$root/etc"
        cp -a --remove-destination "$out/etc/." "$root/etc/"
    }
}

# fill UPPER NAME CONFIG… - an upper directory with all that distinguishes this node from the root
# filesystem.
fill() {
    local upper=$1 name=$2 hypervisor
    shift 2
    mkdir -p "$upper"
    cp -a "$here/files/." "$upper/"
    mkdir -p "$upper/usr/local/share/node"
    ln "$(oci_dir)/preload.tar" "$upper/usr/local/share/node/preload.tar"
    install_into "$upper" "$checkout"
    [[ $# == 0 ]] || cp -- "$@" "$upper/etc/containerd/conf.d/"
    printf '127.0.0.1 localhost\n198.51.100.2 node-%s\n' "$name" >"$upper/etc/hosts"
    echo "node-$name" >"$upper/etc/hostname"
    # Debian has no package of it.
    hypervisor=$(cloud_hypervisor)
    [[ ! $hypervisor ]] || { mkdir -p "$upper/usr/local/bin" && cp "$hypervisor" "$upper/usr/local/bin/cloud-hypervisor"; }
    # Nobody answers there either, but pods copy this file and expect a name server in it.
    echo 'nameserver 198.51.100.1' >"$upper/etc/resolv.conf"
}

# cloud_hypervisor - the path of that program on this machine, or nothing if it has none.
cloud_hypervisor() {
    local program=${MAGNETAR_CLOUD_HYPERVISOR-}
    [[ $program ]] || program=$(command -v cloud-hypervisor) || return 0
    [[ -x $program ]] || fail "MAGNETAR_CLOUD_HYPERVISOR is $program, which is no program"
    printf '%s' "$program"
}

# shares - what of the machine's files a node sees, read-only, as FROM:TO.
shares() {
    local target
    echo "$(oci_dir)/registry:/var/lib/registry"
    echo "$checkout:/magnetar"
    # Test binaries know the paths of the machine that they were built on.
    echo "$checkout:$checkout"
    target=$(realpath -m "${CARGO_TARGET_DIR:-$checkout/target}")
    [[ $target == "$checkout"/* || ! -d $target ]] || echo "$target:$target"
}

# lay_out_namespaces NAME RUN CONFIG… - the upper directory, and the list of what `enter` is to
# mount, with the folders in `layers` uppermost.
lay_out_namespaces() {
    local name=$1 run=$2 layer
    shift 2
    mkdir -p "$run"/{upper,work,root,containerd}
    fill "$run/upper" "$name" "$@"
    {
        echo "name=$name"
        echo "lower=$(rootfs_dir)/rootfs"
        for layer in ${layers[@]+"${layers[@]}"}; do echo "layer=$layer"; done
        [[ ! -d $(tools_dir) ]] || echo "layer=$(tools_dir)"
        shares | sed 's/^/bind=/'
    } >"$run/uses"
}

# lay_out_root_cgroup NAME RUN CONFIG… - the same, for a node that looks like the host of a
# container which runs in no cgroup of its own: its processes see themselves in the root of every
# hierarchy but memory's, v2 is mounted beside v1, and PID 1 does not reap.
lay_out_root_cgroup() {
    hybrid || fail "--root-cgroup needs a machine with cgroup v1, memory included, and v2 mounted beside it"
    lay_out_namespaces "$@"
    echo form=root_cgroup >>"$2/uses"
}

# has_root_cgroup NAME - whether the node was started in that form.
has_root_cgroup() { grep -qsx form=root_cgroup "$cache/run/$1/uses"; }

# launch NAME RUN FORM - in a process of its own: into the cgroups first, then into namespaces that
# have them as roots. A descriptor inherited from the caller must not live on in the node: it could
# be the pipe whose end somebody awaits.
launch() {
    local name=$1 run=$2 form=$3 fd
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        ((fd <= 2)) || exec {fd}>&-
    done
    join_cgroups "$name"
    # Two steps, because with v2 only leaves can hold processes: the namespace's root is the node's
    # cgroup, and then everybody leaves it for a leaf.
    # shellcheck disable=SC2016 # expanded by the inner shell
    exec setsid unshare --cgroup -- bash -euc '
        source "$1/cgroups.sh"
        leave_root "$3" "$5"
        exec unshare --mount --pid --net --uts --ipc --fork -- env -i --default-signal "PATH=$4" HOME=/root LANG=C.UTF-8 bash "$1/enter" "$2"
    ' launch "$here" "$run" "$name" "$(<"$run/path")" "$form" 3>"$run/ready" >"$run/log" 2>&1 </dev/null
}

# start_node NAME FORM CONTAINERD CONFIG… - FORM is `namespaces`, `root_cgroup` or `vm`.
start_node() {
    local name=$1 form=$2 containerd=$3 run=$cache/run/$1 answer=''
    shift 3
    running "$name" && fail "node $name is running already"
    [[ ! -e $run ]] || { say "clearing away what is left of node $name" && stop_node "$name"; }
    mkdir -p "$run"
    echo "${containerd:+$containerd:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" >"$run/path"
    "lay_out_$form" "$name" "$run" "$@"
    # A setting of `start`, which all forms but the virtual machine have.
    [[ ! $kubernetes ]] || lay_out_kubernetes "$run"
    make_cgroups "$name"
    mkfifo "$run/ready"
    launch "$name" "$run" "$form" &
    disown
    # Ends with init's word, or empty when nobody is left who could give it.
    IFS= read -r -t "$start_within" answer <"$run/ready" || true
    if [[ $answer != ready ]]; then
        # What follows a kernel's panic is for those who read the log.
        say "node $name did not start: ${answer:-$(sed '/Kernel panic/q' "$run/log" | tail -n 3)}"
        say "its logs are kept until \`node stop\`: \`node logs --name $name\`"
        return 1
    fi
}
