# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Stand-ins for the images that critest pulls, under the names it pulls them by. Each does what the
# tests look for.

# Nearly every test runs in this one. Its shell is dash, because busybox's own shell runs applets
# inside itself, which defeats masked paths and pgrep; pgrep, ipcs and brctl are real as Debian's
# busybox has none.
tree=$work/critest-busybox
busybox "$tree"
rm -f "$tree"/bin/{sh,pgrep,ipcs,brctl}
with_libraries "$tree" /usr/bin/{dash,pgrep,ipcs} /usr/sbin/brctl
# The test of masked paths compares what the shell says to the letter, and there it says no line
# number. This is the format string of dash's messages, in place and of the same length.
LC_ALL=C sed -i 's/%s: %d: \x00/%1$s: \x00\x00\x00/' "$tree/usr/bin/dash"
ln "$tree/usr/bin/dash" "$tree/bin/sh"
image critest-busybox "$tree" --config.cmd sh
publish critest-busybox e2e-test-images/busybox:1.29-2

# Its log must say "httpd", its main page must answer.
mkdir -p "$tree/www"
echo httpd >"$tree/www/index.html"
image httpd "$tree" --config.cmd sh --config.cmd=-c --config.cmd 'echo httpd starts; exec httpd -f -h /www'
publish httpd e2e-test-images/httpd:2.4.39-4

# A program with the set-user-id bit that says whom it runs as: a privileged dash (-p keeps the
# effective user).
tree=$work/nonewprivs
accounts "$tree"
with_libraries "$tree" /usr/bin/dash
chmod 4755 "$tree/usr/bin/dash"
image nonewprivs "$tree" --config.entrypoint /usr/bin/dash --config.entrypoint=-p --config.entrypoint=-c \
    --config.entrypoint 'while read -r key _ effective _; do
        [ "$key" != Uid: ] || echo "Effective uid: $effective"
    done </proc/self/status'
publish nonewprivs e2e-test-images/nonewprivs:1.3

# nginx TREE PORT
nginx() {
    local tree=$1 port=$2
    cp -a "$work/critest-busybox" "$tree"
    with_libraries "$tree" /usr/sbin/nginx
    mkdir -p "$tree"/{etc/nginx,var/log/nginx,var/lib/nginx,usr/share/nginx/html}
    echo nginx >"$tree/usr/share/nginx/html/index.html"
    cat >"$tree/etc/nginx/nginx.conf" <<EOF
user www-data;
worker_processes 1;
pid /var/run/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
    access_log /dev/stdout;
    server { listen $port; location / { root /usr/share/nginx/html; } }
}
EOF
}
nginx "$work/nginx" 80
image nginx "$work/nginx" --config.cmd nginx --config.cmd=-g --config.cmd 'daemon off;' --config.stopsignal SIGQUIT
publish nginx e2e-test-images/nginx:1.14-2
nginx "$work/hostnet-nginx" 12003
image hostnet-nginx "$work/hostnet-nginx" --config.cmd nginx --config.cmd=-g --config.cmd 'daemon off;'
publish hostnet-nginx k8s-staging-cri-tools/hostnet-nginx-amd64:latest

# Images that differ in the configured user.
while read -r name user; do
    variant "$name" critest-busybox --config.user "$user"
    publish "$name" "k8s-staging-cri-tools/$name:latest"
done <<'EOF'
test-image-user-uid 1002
test-image-user-username www-data
test-image-user-uid-group 1003:1003
test-image-user-username-group www-data:www-data
EOF

# User 1000 is in a group that only the image's /etc/group knows.
tree=$work/predefined-group
cp -a "$work/critest-busybox" "$tree"
echo default-user:x:1000:1000::/home/default-user:/bin/sh >>"$tree/etc/passwd"
printf '%s\n' default-user:x:1000: group-defined-in-image:x:50000:default-user >>"$tree/etc/group"
image predefined-group "$tree" --config.user 1000
publish predefined-group k8s-staging-cri-tools/test-image-predefined-group:latest

# Images that need only be different from every other one, or the same under several tags. One test
# removes the container without stopping it, so what they run must not be about to end just then.
small() {
    cp -a "$work/pause" "$work/$1"
    echo "$1" >"$work/$1/name"
    image "$1" "$work/$1" --config.entrypoint /pause --config.entrypoint=-P
}
for name in test-image-1 test-image-2 test-image-3 test-image-latest test-image-digest; do
    small "$name"
    publish "$name" "k8s-staging-cri-tools/$name:latest"
done
for tag in test all; do
    small "test-image-tag-$tag"
    publish "test-image-tag-$tag" "k8s-staging-cri-tools/test-image-tag:$tag"
done
small test-image-tags
publish test-image-tags k8s-staging-cri-tools/test-image-tags:{1,2,3}
# Pulled as the image of two registries, and removed: not to be confused with the node's own.
small public-pause
publish public-pause pause:3.9
