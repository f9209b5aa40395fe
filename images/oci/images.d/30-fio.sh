# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# fio, with which the benchmark measures files. Debian's is linked with the clients of several
# storage systems: some 80 MB, which no node has from its start.

tree=$work/fio
busybox "$tree"
with_libraries "$tree" /usr/bin/fio
image fio "$tree" --config.cmd sh
publish fio magnetar/fio:1
