# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The node as a virtual machine: an outer node, made like any other, whose only service is QEMU
# (vm/machine). So what finds, enters and clears away a node does it for both forms. In the machine
# vm/boot takes the place of `enter`.

is_vm() { [[ -d $cache/run/$1/upper/vm ]]; }

# accelerator - KVM only where the processor has it. A /dev/kvm alone can be a paravirtual one that
# runs no stock kernel.
accelerator() {
    if [[ -c /dev/kvm ]] && grep -q -w -E 'vmx|svm' /proc/cpuinfo; then echo kvm; else echo tcg; fi
}

# lay_out_vm NAME RUN CONFIG… - the outer node's upper directory, in it the tree that goes to the
# machine's own disk.
lay_out_vm() {
    local name=$1 run=$2 vm=$2/upper/vm inner=$2/upper/vm/disk/upper libexec settings
    shift 2
    [[ -c /dev/net/tun ]] || fail "a virtual machine needs /dev/net/tun"
    mkdir -p "$run"/{upper,work,root,containerd} "$vm"/{image,disk/{upper,work,containerd}}
    fill "$inner" "$name" "$@"

    accelerator >"$vm/accelerator"
    echo "${MAGNETAR_VM_MEMORY:-4G}" >"$vm/memory"
    if [[ $(<"$vm/accelerator") == tcg ]]; then
        # How much longer whoever waits for something in there should wait.
        echo 10 >"$run/patience"
        sed -i 's/^timeout: .*/timeout: 60/' "$inner/etc/crictl.yaml"
    fi

    libexec=$inner/usr/local/libexec/node settings=$inner/usr/local/share/node
    mkdir -p "$libexec/vm"
    cp "$here"/vm/{boot,run,sshd_config} "$here"/{mounts,cgroups}.sh "$libexec/vm/"
    environment "$name" >"$settings/environment"
    shares | cut -d : -f 2 >"$settings/shares"
    {
        echo "name=$name"
        echo "lower=$(rootfs_dir)/rootfs"
        echo "bind=$(vm_dir):/vm/image"
        shares | sed 's/^/bind=/'
        echo "init=/magnetar/images/node/vm/machine"
    } >"$run/uses"
}

# power_off NAME - as a machine should end; whatever is left when the time is over is for
# `stop_node` to kill.
power_off() {
    local deadline=$((SECONDS + stop_within)) call
    (execute "$1" busybox poweroff -f) >/dev/null 2>&1 </dev/null &
    call=$!
    disown
    # The call ends with the machine, or when it reaches nobody.
    while [[ -e /proc/$call ]] && running "$1" && ((SECONDS < deadline)); do sleep 0.05; done
}
