# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# A node's cgroups on the machine: one in every hierarchy, `magnetar-node/NAME`, on v1, v2 or both.
# Every process of a node is in them, so they are also how `stop` finds what there is to kill, even
# of a start that died half-way.

cgroup_parent=magnetar-node
# Where the processes of a node with form root_cgroup are in the memory hierarchy, below the root
# that they see.
memory_leaf=somewhere

# hierarchies - the mount points of all cgroup hierarchies of the machine.
hierarchies() { awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts; }

# memory_hierarchy - the mount point of the v1 hierarchy that has the memory controller; empty where
# there is none.
memory_hierarchy() { awk '$3 == "cgroup" && ("," $4 ",") ~ /,memory,/ { print $2; exit }' /proc/self/mounts; }

# hybrid - whether the machine has v1 controllers, memory among them, and v2 mounted beside them.
hybrid() { [[ $(memory_hierarchy) ]] && awk '$3 == "cgroup2" { found = 1 } END { exit !found }' /proc/self/mounts; }

# cgroups NAME - the node's cgroups that exist.
cgroups() {
    local mount
    for mount in $(hierarchies); do
        [[ ! -d $mount/$cgroup_parent/$1 ]] || printf '%s\n' "$mount/$cgroup_parent/$1"
    done
}

make_cgroups() {
    local mount directory file
    for mount in $(hierarchies); do
        for directory in "$mount/$cgroup_parent" "$mount/$cgroup_parent/$1"; do
            mkdir -p "$directory"
            # A v1 cpuset is born empty, and takes no process before it is filled.
            for file in cpuset.cpus cpuset.mems; do
                [[ ! -e $directory/$file || -e $directory/cgroup.controllers || -s $directory/$file && $(<"$directory/$file") ]] ||
                    cat "$directory/../$file" >"$directory/$file"
            done
            # With v2 a controller must be handed down from level to level.
            [[ ! -e $directory/cgroup.controllers ]] || delegate "$directory/.."
        done
    done
}

# delegate CGROUP - gives CGROUP's children every controller that it has; those that refuse are
# left.
delegate() {
    local controller
    for controller in $(<"$1/cgroup.controllers"); do
        echo "+$controller" 2>/dev/null >"$1/cgroup.subtree_control" || true
    done
}

# join_cgroups NAME - moves this shell, and so what it executes, into the node's cgroups: into the
# leaf, once there is one.
join_cgroups() {
    local directory leaf
    for directory in $(cgroups "$1"); do
        for leaf in init "$memory_leaf"; do
            [[ ! -d $directory/$leaf ]] || { directory+=/$leaf && break; }
        done
        echo "$BASHPID" >"$directory/cgroup.procs"
    done
}

# leave_root NAME FORM - moves this shell below the root of its cgroup namespace, where it must not
# stay in that root. With form root_cgroup that is the memory hierarchy alone. Otherwise it is v2,
# on a machine without v1: there the leaf's siblings to be get the controllers.
leave_root() {
    local directory=/sys/fs/cgroup/$cgroup_parent/$1
    if [[ $2 == root_cgroup ]]; then
        directory=$(memory_hierarchy)/$cgroup_parent/$1/$memory_leaf
        mkdir "$directory"
        echo "$BASHPID" >"$directory/cgroup.procs"
        return
    fi
    [[ -e $directory/cgroup.controllers ]] || return 0
    mkdir "$directory/init"
    echo "$BASHPID" >"$directory/init/cgroup.procs"
    delegate "$directory"
}

# cgroup_processes NAME - the pids of all processes in the node's cgroups, however deep.
cgroup_processes() {
    local directory
    for directory in $(cgroups "$1"); do
        find "$directory" -name cgroup.procs -exec cat {} + 2>/dev/null
    done | sort -un
}

# thaw NAME - with v1 what is frozen does not die, not even of SIGKILL, before it goes on.
thaw() {
    local directory state
    for directory in $(cgroups "$1"); do
        while read -r state; do
            echo THAWED 2>/dev/null >"$state" || true
        done < <(find "$directory" -name freezer.state 2>/dev/null)
    done
}

# remove_cgroups NAME - false while one of them is still in use.
remove_cgroups() {
    local directory
    for directory in $(cgroups "$1"); do
        find "$directory" -depth -type d -exec rmdir {} + 2>/dev/null || true
        # The parent is shared with other nodes; the last one out removes it.
        rmdir "${directory%/*}" 2>/dev/null || true
    done
    [[ -z $(cgroups "$1") ]]
}
