;; SPDX-License-Identifier: Apache-2.0
;; A component, a command of WASI 0.2, that does well where its configuration (wasi:config) has
;; "blue" for "COLOUR".
(component
  (import "wasi:config/store@0.2.0-rc.1" (instance $config
    (type $kinds (variant (case "upstream" string) (case "io" string)))
    (export "error" (type $error (eq $kinds)))
    (type $answer (result (option string) (error $error)))
    (export "get" (func (param "key" string) (result $answer)))))
  (core module $memory
    (memory (export "memory") 1)
    (data (i32.const 16) "COLOUR")
    (global $free (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (global.get $free)
      (global.set $free (i32.and (i32.add (i32.add (global.get $free) (local.get 3)) (i32.const 7)) (i32.const -8)))))
  (core instance $m (instantiate $memory))
  (alias core export $m "memory" (core memory $mem))
  (alias core export $m "realloc" (core func $realloc))
  (core func $get (canon lower (func $config "get") (memory $mem) (realloc $realloc)))
  (core module $code
    (import "m" "memory" (memory 1))
    (import "config" "get" (func $get (param i32 i32 i32)))
    (func (export "run") (result i32)
      (call $get (i32.const 16) (i32.const 6) (i32.const 0))
      ;; The answer: ok, some, the text's place, its length.
      (if (i32.load8_u (i32.const 0)) (then (return (i32.const 1))))
      (if (i32.ne (i32.load8_u (i32.const 4)) (i32.const 1)) (then (return (i32.const 1))))
      (if (i32.ne (i32.load (i32.const 12)) (i32.const 4)) (then (return (i32.const 1))))
      ;; "blue"
      (i32.ne (i32.load (i32.load (i32.const 8))) (i32.const 0x65756c62))))
  (core instance $c (instantiate $code
    (with "m" (instance $m))
    (with "config" (instance (export "get" (func $get))))))
  (func $run (result (result)) (canon lift (core func $c "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
