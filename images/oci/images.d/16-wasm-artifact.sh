# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Wasm modules that are the layer of their image: no files, nothing to unpack. They are put together
# by hand, as umoci makes file systems only.

# Writes a line and returns. The binary format of
#   (module
#     (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
#     (memory (export "memory") 1)
#     (data (i32.const 8) "hello from an artifact\n")
#     (func (export "_start")
#       (i32.store (i32.const 0) (i32.const 8))
#       (i32.store (i32.const 4) (i32.const 23))
#       (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))))
hex=0061736d01000000010c0260047f7f7f7f017f60000002230116776173695f736e617073686f745f70726576696577310866645f777269746500000302
hex+=01010503010001071302066d656d6f72790200065f737461727400010a1e011c00410041083602004104411736020041014100410141c00010001a0b
hex+=0b1d010041080b1768656c6c6f2066726f6d20616e2061727469666163740a000b046e616d65010401000177
# shellcheck disable=SC2001,SC2059 # two characters at a time; the text is the format
printf "$(sed 's/../\\x&/g' <<<"$hex")" >"$work/artifact.wasm"

# blob LAYOUT FILE TYPE - adds content to a layout, and prints its descriptor.
blob() {
    local digest
    digest=$(sha256sum <"$2" | cut -d' ' -f1)
    mkdir -p "$1/blobs/sha256"
    cp "$2" "$1/blobs/sha256/$digest"
    printf '{"mediaType":"%s","digest":"sha256:%s","size":%d}' "$3" "$digest" "$(stat -c %s "$2")"
}

# artifact NAME CONFIG-TYPE CONFIG LAYER-TYPE - an image whose only layer is the module, known to
# `publish` as NAME.
artifact() {
    local layout=$layouts/$1 layer config manifest
    mkdir -p "$layout"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
    layer=$(blob "$layout" "$work/artifact.wasm" "$4")
    echo "$3" >"$work/config"
    config=$(blob "$layout" "$work/config" "$2")
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
        "$config" "$layer" >"$work/manifest"
    manifest=$(blob "$layout" "$work/manifest" application/vnd.oci.image.manifest.v1+json)
    printf '{"schemaVersion":2,"manifests":[%s]}' \
        "${manifest%\}},\"annotations\":{\"org.opencontainers.image.ref.name\":\"it\"}}" >"$layout/index.json"
}

# As CNCF's layout has it; what is run, and how, is the pod's to say.
artifact wasm-artifact application/vnd.wasm.config.v0+json '{"architecture":"wasm","os":"wasip1","layerDigests":[]}' application/wasm
# With an image's configuration, which has a command; containerd wants as many file systems as
# layers that it knows.
artifact wasm-artifact-image application/vnd.oci.image.config.v1+json \
    '{"architecture":"wasm","os":"wasip1","config":{"Entrypoint":["/app.wasm"]},"rootfs":{"type":"layers","diff_ids":[]}}' \
    application/vnd.wasm.content.layer.v1+wasm
for name in wasm-artifact wasm-artifact-image; do
    preload "$name" "localhost/magnetar/$name:1"
    publish "$name" "magnetar/$name:1"
done
