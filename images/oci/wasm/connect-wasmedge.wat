;; SPDX-License-Identifier: Apache-2.0
;; Connects to 127.0.0.1:9000 with WasmEdge's sockets for WASI preview 1, and writes what comes.
;; Ends with the error's number where it cannot.
(module
  (import "wasi_snapshot_preview1" "sock_open" (func $open (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_connect" (func $connect (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_recv" (func $receive (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  ;; An address is its bytes and their number.
  (data (i32.const 0) "\10\00\00\00\04\00\00\00")
  (data (i32.const 16) "\7f\00\00\01")
  (func $check (param $errno i32)
    (if (local.get $errno) (then (call $exit (local.get $errno)))))
  (func (export "_start")
    ;; IPv4, a stream.
    (call $check (call $open (i32.const 1) (i32.const 2) (i32.const 32)))
    (call $check (call $connect (i32.load (i32.const 32)) (i32.const 0) (i32.const 9000)))
    (i32.store (i32.const 40) (i32.const 1024))
    (loop $more
      (i32.store (i32.const 44) (i32.const 4096))
      (call $check (call $receive (i32.load (i32.const 32)) (i32.const 40) (i32.const 1) (i32.const 0) (i32.const 48) (i32.const 52)))
      (i32.store (i32.const 44) (i32.load (i32.const 48)))
      (if (i32.load (i32.const 48)) (then
        (call $check (call $write (i32.const 1) (i32.const 40) (i32.const 1) (i32.const 56)))
        (br $more))))))
