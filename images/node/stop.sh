# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Stops a node, whatever is left of it, and checks that nothing stays behind on the machine.

# Nearly always it takes less than one. A virtual machine may take longer on a busy host.
stop_within=60

# stop_node NAME - all processes die with the first one of the pid namespace, all mounts with the
# last process of the mount namespace, all links with the network namespace; the cgroups, loop
# devices and files are ours to remove.
stop_node() {
    local name=$1 run=$cache/run/$1 deadline loop left
    ! running "$name" || ! is_vm "$name" || power_off "$name"
    deadline=$((SECONDS + stop_within))
    ! running "$name" || kill -KILL "$(<"$run/pid")" 2>/dev/null || true
    until [[ -z $(kill_processes "$name") ]] && remove_cgroups "$name"; do
        ((SECONDS < deadline)) || break
        sleep 0.02
    done
    while read -r loop; do
        losetup --detach "$loop"
    done < <(loop_devices "$run" | cut -d ' ' -f 1)
    # The kernel takes its time with what it removes by itself.
    while left=$(traces "$name") && [[ $left ]]; do
        ((SECONDS < deadline)) || break
        sleep 0.02
    done
    if [[ $left ]]; then
        say "node $name left traces:"
        printf '%s\n' "$left" >&2
        return 1
    fi
    rm -rf --one-file-system "$run"
}

# kill_processes NAME - kills what is in the node's cgroups and prints what it found.
kill_processes() {
    local pids
    mapfile -t pids < <(cgroup_processes "$1")
    [[ ${#pids[@]} == 0 ]] || { kill -KILL "${pids[@]}" 2>/dev/null || true; }
    thaw "$1"
    printf '%s' "${pids[*]}"
}

# traces NAME - what of a node there still is on the machine, one line each.
traces() {
    local name=$1 run=$cache/run/$1 kind
    cgroups "$name" | sed 's/^/cgroup /'
    grep -F " $run/" /proc/self/mounts | sed 's/^/mount /' || true
    for kind in pid net; do
        [[ ! -s $run/${kind}ns ]] || in_namespace "$kind" "$(<"$run/${kind}ns")" | sed "s/^/process in its $kind namespace: /"
    done
    loop_devices "$run" | sed 's/^/loop device /'
}

# loop_devices RUN - those whose files lie in RUN.
loop_devices() { losetup --noheadings --raw --output NAME,BACK-FILE 2>/dev/null | awk -v "run=$1/" 'index($2, run) == 1'; }

# in_namespace KIND ID - the living processes of the machine that are in that namespace. (What is
# dead and not yet reaped by the machine's own PID 1 is nobody's business.)
in_namespace() {
    find /proc -mindepth 3 -maxdepth 3 -path "/proc/[0-9]*/ns/$1" -printf '%l %p\n' 2>/dev/null |
        awk -v "id=$2" '$1 == id { split($2, part, "/"); print part[3] }' | while read -r pid; do
        grep -qs '^State:[[:space:]]*[^ZX]' "/proc/$pid/status" || continue
        printf '%s %s\n' "$pid" "$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline")"
    done
}
