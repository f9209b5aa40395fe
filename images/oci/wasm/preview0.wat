;; SPDX-License-Identifier: Apache-2.0
;; Is made for a WASI that never became a standard.
(module
  (import "wasi_unstable_of_old" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")))
