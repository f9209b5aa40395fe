# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Wasm modules: those of images/oci/wasm, of which the ones in C become a single program (but
# those in folders of their own), in an image that has nothing else, and beside busybox in one that
# has.

tree=$work/wasm
mkdir -p "$tree/modules" "$tree/tmp"
chmod 1777 "$tree/tmp"
cp "${0%/*}"/wasm/*.wat "$tree/modules/"
# A stack of 2 MiB, of which the module may well use one. It is the module's own memory, not the
# engine's.
clang --target=wasm32-wasi -std=gnu17 -O1 -Wall -Wextra -Werror -Wl,-z,stack-size=2097152 -Wl,--strip-all \
    -o "$tree/modules/wasi.wasm" "${0%/*}"/wasm/*.c
# With the names and lines of its code.
clang --target=wasm32-wasi -std=gnu17 -O0 -g -Wall -Wextra -Werror -o "$tree/modules/trap.wasm" "${0%/*}"/wasm/trap/trap.c
# With functions that only a container with a language model uses.
clang --target=wasm32-wasi -std=gnu17 -O1 -Wall -Wextra -Werror -Wl,--strip-all -o "$tree/modules/nn.wasm" "${0%/*}"/wasm/nn/nn.c
# With functions that only engines with WasmEdge's sockets have.
clang --target=wasm32-wasi -std=gnu17 -O1 -Wall -Wextra -Werror -Wl,--strip-all -o "$tree/modules/sockets.wasm" "${0%/*}"/wasm/sockets/*.c
# What no module can be: a header and nothing that makes sense after it, a part of one, and no
# header.
printf '\0asm\1\0\0\0\377\377\377\377' >"$tree/modules/invalid.wasm"
printf '\0asm' >"$tree/modules/truncated.wasm"
echo 'no module' >"$tree/modules/text.wasm"
image wasm "$tree" --config.entrypoint /modules/hello.wat

tree=$work/wasm-tools
busybox "$tree"
cp -r "$work/wasm/modules" "$tree/"
image wasm-tools "$tree" --config.entrypoint /modules/hello.wat

for name in wasm wasm-tools; do
    preload "$name" "localhost/magnetar/$name:1"
    publish "$name" "magnetar/$name:1"
done
