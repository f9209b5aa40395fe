# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# The Go tools of tests/tools, as a layer of the node's root: crictl, critest, and a second, newer
# containerd with its own integration suite.

# (Not /opt/containerd: every containerd puts that folder on its own PATH, and would take this shim
# for its own.)
build_tools() {
    local dir=$1 log=${1%.part}.log
    say "building the Go tools (log: $log)"
    nice "$checkout/tests/tools/build" "$dir/usr/local/bin" "$dir/opt/containerd-next/bin" >"$log" 2>&1 || fail "Go tools failed, see $log"
}
