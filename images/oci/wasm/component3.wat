;; SPDX-License-Identifier: Apache-2.0
;; A component, a command of WASI 0.3, that does well.
(component
  (core module $code (func (export "run") (result i32) (i32.const 0)))
  (core instance $instance (instantiate $code))
  (type $run (func async (result (result))))
  (func $run (type $run) (canon lift (core func $instance "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.3.0" (instance $command)))
