;; SPDX-License-Identifier: Apache-2.0
;; A component, a command of WASI 0.2, that exits with code 200.
(component
  (import "wasi:cli/exit@0.2.12" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
  (core func $exit (canon lower (func $exit "exit-with-code")))
  (core module $code
    (import "host" "exit" (func $exit (param i32)))
    (func (export "run") (result i32) (call $exit (i32.const 200)) (unreachable)))
  (core instance $host (export "exit" (func $exit)))
  (core instance $instance (instantiate $code (with "host" (instance $host))))
  (func $run (result (result)) (canon lift (core func $instance "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
