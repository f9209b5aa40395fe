# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Kubernetes on the node, all of it: the node's init sources this and calls `kubernetes`. Each part
# is a service like any other, with a log.

# kubernetes - returns when pods can be made, or when a step has failed: then its log's last lines
# say which, and why.
kubernetes() {
    local step log=/var/log/kubernetes.log
    for step in forwarding configure control_plane kubelet api objects proxy node; do
        "$step" >>$log 2>&1 || { echo "(the step $step failed)" >>$log && return 1; }
    done
}

# forwarding - of this network namespace alone: between pods, also those of one bridge, whose
# packets kube-proxy gives other addresses.
forwarding() { echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables; }

configuration=/etc/kubernetes
# Of no group that must be given its rights first, as admin.conf is.
export KUBECONFIG=$configuration/super-admin.conf

# configure - has kubeadm make certificates, clients' configurations and manifests. It would have
# a kubelet run the control plane from the manifests; here init does, with their command lines.
configure() {
    local settings=$run/kubeadm.yaml
    sed "s/\bNODE$/$HOSTNAME/; s/\bVERSION$/$(kubeadm version --output short)/" $configuration/kubeadm.yaml >"$settings" &&
        kubeadm init --config "$settings" &&
        kubeadm kubeconfig user --client-name system:kube-proxy --config "$settings" |
        install -m 600 /dev/stdin $configuration/kube-proxy.conf &&
        # No kubelet may find them there.
        mv $configuration/manifests "$run/manifests"
}

# command_lines - those of the control plane, each one a list in JSON. Nobody is asked for them, and
# nothing is changed: there is no shorter way to read YAML here.
command_lines() { kubectl annotate --local --filename "$run/manifests" --output jsonpath='{.spec.containers[0].command}{"\n"}' read=yes; }

control_plane() {
    local line words
    command_lines >"$run/command-lines" || return
    while read -r line; do
        mapfile -t words < <(jq --raw-output '.[]' <<<"$line")
        supervise "${words[0]}" "${words[@]}" 3>&- &
    done <"$run/command-lines"
}

kubelet() { supervise kubelet kubelet_alone 3>&- & }

# kubelet_alone - it wants settings of the kernel that are the whole machine's. It sees them as it
# wants them, alone: these mounts are no part of the mount namespace that pods come from, where all
# others are shared with it.
kubelet_alone() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    exec unshare --mount --propagation unchanged -- bash -euc '
        mount --make-private /proc
        mkdir -p /run/node/sysctl
        for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
            kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
            name=${setting%=*} file=/run/node/sysctl/${setting//[\/=]/-}
            echo "${setting#*=}" >"$file"
            mount --bind "$file" "/proc/sys/$name"
        done
        exec kubelet --config /etc/kubernetes/kubelet.yaml --kubeconfig /etc/kubernetes/kubelet.conf \
            --hostname-override "$HOSTNAME" --node-ip 198.51.100.2'
}

api() { within answers; }

answers() { kubectl get --raw /readyz >/dev/null 2>&1; }

# objects - what a cluster has besides its parts.
objects() {
    local classes=$configuration/runtimeclasses.yaml
    # What admin.conf may do, and the API server when it calls the kubelet: kubeadm's own bindings,
    # of phases that are left out.
    kubectl create clusterrolebinding kubeadm:cluster-admins --clusterrole cluster-admin --group kubeadm:cluster-admins &&
        kubectl create clusterrolebinding kubeadm:apiserver-kubelet-client --clusterrole system:kubelet-api-admin \
            --user kube-apiserver-kubelet-client &&
        { [[ ! -e $classes ]] || kubectl apply --filename "$classes"; }
}

proxy() { supervise kube-proxy kube-proxy --config $configuration/kube-proxy.yaml --hostname-override "$HOSTNAME" 3>&- & }

# node - waits for the node, and for what no pod can be made without.
node() {
    local limit=(--timeout "${ready_within}s")
    kubectl wait --for create "${limit[@]}" "node/$HOSTNAME" &&
        kubectl wait --for condition=Ready "${limit[@]}" "node/$HOSTNAME" &&
        kubectl wait --for create "${limit[@]}" serviceaccount/default
}
