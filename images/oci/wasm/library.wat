;; SPDX-License-Identifier: Apache-2.0
;; Has no _start, but a function that can be called by its name.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\00\01\00\00\0f\00\00\00")
  (data (i32.const 256) "called by name\n")
  (func (export "greet") (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))
