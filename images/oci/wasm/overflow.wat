;; SPDX-License-Identifier: Apache-2.0
;; Calls itself without end. What it does after each call keeps a compiler from making a loop of it.
(module
  (memory (export "memory") 1)
  (func $deeper (param i32) (result i32)
    (i32.store (i32.and (local.get 0) (i32.const 0xfffc)) (call $deeper (i32.add (local.get 0) (i32.const 4))))
    (i32.load (i32.const 4)))
  (func (export "_start") (drop (call $deeper (i32.const 0)))))
