;; SPDX-License-Identifier: Apache-2.0
;; Traps before its function is called.
(module
  (memory (export "memory") 1)
  (func $start unreachable)
  (start $start)
  (func (export "_start")))
