;; SPDX-License-Identifier: Apache-2.0
;; Declares memory that threads share.
(module
  (memory 1 1 shared)
  (func (export "_start")))
