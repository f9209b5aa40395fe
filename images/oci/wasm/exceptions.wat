;; SPDX-License-Identifier: Apache-2.0
;; Throws an exception through a call, catches it, and ends with the code in it: 7. (Exceptions of
;; WebAssembly 3.0.)
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (tag $failed (param i32))
  (func $fail (param $code i32) (throw $failed (local.get $code)))
  (func (export "_start")
    (block $caught (result i32)
      (try_table (catch $failed $caught) (call $fail (i32.const 7)))
      (i32.const 1))
    (call $proc_exit)))
