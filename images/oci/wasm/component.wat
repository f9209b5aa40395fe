;; SPDX-License-Identifier: Apache-2.0
;; A component, a command of WASI 0.2, that does well.
(component
  (core module $code (func (export "run") (result i32) (i32.const 0)))
  (core instance $instance (instantiate $code))
  (func $run (result (result)) (canon lift (core func $instance "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
