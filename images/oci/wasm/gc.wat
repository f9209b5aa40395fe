;; SPDX-License-Identifier: Apache-2.0
;; Makes more objects than its memory could hold at a time, and ends with the code that is in the
;; last one: 7. (Garbage collection of WebAssembly 3.0.)
(module
  (type $bytes (array (mut i8)))
  (type $box (struct (field $code i32) (field $rest (ref null $bytes))))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (local $box (ref null $box)) (local $left i32)
    (local.set $left (i32.const 20000))
    (loop $again
      (local.set $box (struct.new $box (i32.const 7) (array.new_default $bytes (i32.const 65536))))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $again (local.get $left)))
    (call $proc_exit (struct.get $box $code (local.get $box)))))
