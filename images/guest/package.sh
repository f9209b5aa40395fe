# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the kernels of microVMs have in common: they come from Debian's packages, and are kept in the
# cache with their checksums.

# private_apt DIR - configures an apt that has all of its state in DIR and this suite only. The
# machine's own configuration is not read, since it may have hooks that run after an update; how it
# reaches the network is taken from it.
private_apt() {
    local dir=$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror
    mirror=$(mirror)
    mkdir -p "$dir"/{lists,archives}/partial
    : >"$dir/status"
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$dir/sources.list"
    cat >"$dir/apt.conf" <<END
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "$dir";
Dir::State::status "$dir/status";
Dir::Cache "$dir";
APT::Architecture "amd64";
// The download's user cannot write to a cache in root's home.
APT::Sandbox::User "root";
Acquire::Languages "none";
// A mirror may be a snapshot whose Release file is past its date; the signature is still checked.
Acquire::Check-Valid-Until "false";
END
    apt-config dump | grep -E '^Acquire::(http|https|ftp)::' >>"$dir/apt.conf" || true
}

# seal DIR - the checksums of all that is in it.
# shellcheck disable=SC2094 # the file that is written is not among those that are read
seal() { (cd "$1" && find . -type f ! -name sums -print0 | sort -z | xargs -0 sha256sum >sums); }

# intact DIR - whether a kernel is there, as it was built.
intact() { (cd "$1" && sha256sum --check --status --strict sums) 2>/dev/null; }
