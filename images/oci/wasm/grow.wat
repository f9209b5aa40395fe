;; SPDX-License-Identifier: Apache-2.0
;; Takes memory, a MiB at a time, and writes to all of it.
(module
  (memory (export "memory") 1)
  (func (export "_start")
    (local $before i32)
    (loop $more
      (local.set $before (memory.grow (i32.const 16)))
      (if (i32.eq (local.get $before) (i32.const -1)) (then (unreachable)))
      (memory.fill (i32.mul (local.get $before) (i32.const 65536)) (i32.const 1) (i32.const 1048576))
      (br $more))))
