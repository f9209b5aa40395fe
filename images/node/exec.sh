# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Runs commands in a node.

# environment NAME - what every program in the node starts with, a variable a line.
environment() {
    local run=$cache/run/$1 endpoint=unix:///run/containerd/containerd.sock
    printf '%s\n' "PATH=$(<"$run/path")" HOME=/root LANG=C.UTF-8 "MAGNETAR_NODE=$1" \
        "CONTAINER_RUNTIME_ENDPOINT=$endpoint" "IMAGE_SERVICE_ENDPOINT=$endpoint"
    ! has_kubernetes "$1" || echo KUBECONFIG=/etc/kubernetes/admin.conf
    # A slow node says so.
    [[ ! -e $run/patience ]] || echo "MAGNETAR_PATIENCE=$(<"$run/patience")"
}

# execute NAME CMD… - becomes CMD in the node.
execute() {
    local name=$1 run=$cache/run/$1 variables command terminal=()
    shift
    running "$name" || fail "node $name is not running"
    join_cgroups "$name"
    mapfile -t variables < <(environment "$name")
    variables+=("TERM=${TERM:-dumb}")
    command=("$@")
    if is_vm "$name"; then
        [[ ! -t 0 || ! -t 1 ]] || terminal=(-t)
        command=(setpriv --pdeathsig TERM -- /usr/local/libexec/node/vm/run env -i "${variables[@]}" "$@")
        # ssh gives the words to a shell in the machine as one line.
        command=(ssh -F /magnetar/images/node/vm/ssh_config "${terminal[@]}" machine "cd / && exec ${command[*]@Q}")
    fi
    # When the caller is killed, CMD must not live on in the node.
    exec nsenter --target "$(<"$run/pid")" --mount --pid --net --uts --ipc --cgroup -- \
        env -i "${variables[@]}" setpriv --pdeathsig TERM -- "${command[@]}"
}
