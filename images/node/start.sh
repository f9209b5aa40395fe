# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Starts a node: lays out its upper directory, makes its cgroups, and runs `enter` in new namespaces.

# running NAME - whether the node's first process lives. Its pid alone would not do: pids are used again.
running() {
    local run=$cache/run/$1
    [[ -s $run/pidns ]] && [[ $(readlink "/proc/$(<"$run/pid")/ns/pid") == "$(<"$run/pidns")" ]]
}

# install_into ROOT - copies the checkout's installable tree into a node's root, running or not. Programs that run are
# unlinked, not overwritten.
install_into() {
    local root=$1 part
    for part in bin libexec share; do
        [[ ! -d $checkout/out/$part ]] || {
            mkdir -p "$root/usr/local/$part"
            cp -a --remove-destination "$checkout/out/$part/." "$root/usr/local/$part/"
        }
    done
    [[ ! -d $checkout/out/etc ]] || {
        mkdir -p "$root/etc"
        cp -a --remove-destination "$checkout/out/etc/." "$root/etc/"
    }
}

# lay_out NAME RUN CONTAINERD CONFIG… - the upper directory with all that distinguishes this node from the root
# filesystem, and the list of what `enter` is to mount.
lay_out() {
    local name=$1 run=$2 containerd=$3 target
    shift 3
    mkdir -p "$run"/{upper,work,root,containerd}
    cp -a "$here/files/." "$run/upper/"
    mkdir -p "$run/upper/usr/local/share/node"
    ln "$(oci_dir)/preload.tar" "$run/upper/usr/local/share/node/preload.tar"
    install_into "$run/upper"
    [[ $# == 0 ]] || cp -- "$@" "$run/upper/etc/containerd/conf.d/"
    printf '127.0.0.1 localhost\n198.51.100.2 node-%s\n' "$name" >"$run/upper/etc/hosts"
    echo "node-$name" >"$run/upper/etc/hostname"
    # Nobody answers there either, but pods copy this file and expect a name server in it.
    echo 'nameserver 198.51.100.1' >"$run/upper/etc/resolv.conf"
    echo "${containerd:+$containerd:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" >"$run/path"
    {
        echo "name=$name"
        echo "lower=$(rootfs_dir)/rootfs"
        [[ ! -d $(tools_dir) ]] || echo "layer=$(tools_dir)"
        echo "registry=$(oci_dir)/registry"
        echo "bind=$checkout:/magnetar"
        # Test binaries know the paths of the machine that they were built on.
        echo "bind=$checkout:$checkout"
        target=$(realpath -m "${CARGO_TARGET_DIR:-$checkout/target}")
        [[ $target == "$checkout"/* || ! -d $target ]] || echo "bind=$target:$target"
    } >"$run/uses"
}

# launch NAME RUN - in a process of its own: into the cgroups first, then into namespaces that have them as roots. A
# descriptor inherited from the caller must not live on in the node: it could be the pipe whose end somebody awaits.
launch() {
    local name=$1 run=$2 fd
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        ((fd <= 2)) || exec {fd}>&-
    done
    join_cgroups "$name"
    # Two steps, because with v2 only leaves can hold processes: the namespace's root is the node's cgroup, and then
    # everybody leaves it for a leaf.
    # shellcheck disable=SC2016 # expanded by the inner shell
    exec setsid unshare --cgroup -- bash -euc '
        source "$1/cgroups.sh"
        leave_root "$3"
        exec unshare --mount --pid --net --uts --ipc --fork -- env -i "PATH=$4" HOME=/root LANG=C.UTF-8 bash "$1/enter" "$2"
    ' launch "$here" "$run" "$name" "$(<"$run/path")" 3>"$run/ready" >"$run/log" 2>&1 </dev/null
}

start_node() {
    local name=$1 run=$cache/run/$1 answer=''
    running "$name" && fail "node $name is running already"
    [[ ! -e $run ]] || { say "clearing away what is left of node $name" && stop_node "$name"; }
    mkdir -p "$run"
    lay_out "$name" "$run" "${@:2}"
    make_cgroups "$name"
    mkfifo "$run/ready"
    launch "$name" "$run" &
    disown
    # Ends with init's word, or empty when nobody is left who could give it.
    IFS= read -r answer <"$run/ready" || true
    if [[ $answer != ready ]]; then
        say "node $name did not start: ${answer:-$(tail -n 3 "$run/log")}"
        say "its logs are kept until \`node stop\`: \`node logs --name $name\`"
        return 1
    fi
}
