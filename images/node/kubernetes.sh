# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Kubernetes in a node: the programs of tests/kubernetes as a layer of its root, and what
# starts them among its files.

build_kubernetes() {
    local dir=$1 log=${1%.part}.log
    command -v go >/dev/null || fail "Kubernetes cannot be built: there is no Go"
    say "compiling Kubernetes, for 10 to 25 minutes (log: $log)"
    nice "$checkout/tests/kubernetes/build" "$dir/usr/local/bin" >"$log" 2>&1 || fail "Kubernetes failed, see $log"
}

# lay_out_kubernetes RUN - puts it into a node in namespaces that has been laid out.
lay_out_kubernetes() {
    cp -a "$checkout/tests/kubernetes/node/." "$1/upper/"
    mkdir "$1/kubelet"
    echo "layer=$(kubernetes_dir)" >>"$1/uses"
}

# has_kubernetes NAME - whether the node was started with it.
has_kubernetes() { [[ -e $cache/run/$1/upper/usr/local/libexec/node/kubernetes.sh ]]; }
