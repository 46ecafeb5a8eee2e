;; The guest of `aok doctor --prove-limits`: misbehaves in the way that the called tool's name begins with, so
;; that a limit must stop it. It is inside the binary and is no plugin. By hand, because Rust has no way to
;; grow a table; it is the core module of a component for the `tool` world.
;;
;; Where it can tell how far it came, it logs an empty line for each step.
(module
  (import "agent-os:plugin/log@0.1.0" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 1)
  (table $t 0 funcref)
  (global $next (mut i32) (i32.const 4096))
  (data (i32.const 16) "misbehave")
  (data (i32.const 32) "Does what a limit must stop.")
  (data (i32.const 64) "{\"type\":\"object\"}")
  ;; list<tool-spec>: one record at 144
  (data (i32.const 128) "\90\00\00\00\01\00\00\00")
  ;; name, description, input-schema, no output-schema, effect `pure`
  (data (i32.const 144)
    "\10\00\00\00\09\00\00\00" "\20\00\00\00\1c\00\00\00" "\40\00\00\00\11\00\00\00"
    "\00\00\00\00\00\00\00\00\00\00\00\00" "\00\00\00\00")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $start i32) (local $mask i32)
    (local.set $mask (i32.sub (local.get 2) (i32.const 1)))
    (local.set $start
      (i32.and (i32.add (global.get $next) (local.get $mask)) (i32.xor (local.get $mask) (i32.const -1))))
    (global.set $next (i32.add (local.get $start) (local.get 3)))
    (local.get $start))
  (func (export "agent-os:plugin/tool-provider@0.1.0#list-tools") (result i32) (i32.const 128))

  ;; One more step was made.
  (func $step (call $log (i32.const 2) (i32.const 32) (i32.const 0)))
  ;; Computes for ever.
  (func $spin (loop $more (br $more)))
  ;; Takes one MiB of memory after the other.
  (func $allocate
    (loop $more
      (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (unreachable)))
      (br $more)))
  ;; Takes a hundred elements of a table after the other.
  (func $tabulate
    (loop $more
      (if (i32.eq (table.grow $t (ref.null func) (i32.const 100)) (i32.const -1)) (then (unreachable)))
      (call $step)
      (br $more)))
  ;; Calls itself; what it adds is needed after the call, so it cannot become a loop.
  (func $recurse (param i32) (result i32)
    (i32.add (local.get 0) (call $recurse (i32.add (local.get 0) (i32.const 1)))))
  ;; Logs lines of 100 bytes.
  (func $chatter
    (loop $more
      (call $log (i32.const 2) (i32.const 1024) (i32.const 100))
      (br $more)))
  ;; Calls the kernel again and again.
  (func $pester (loop $more (call $step) (br $more)))
  ;; Gives a result of two MiB.
  (func $flood
    (drop (memory.grow (i32.const 33)))
    (i32.store (i32.const 260) (i32.const 65536))
    (i32.store (i32.const 264) (i32.const 2097152)))

  (func (export "agent-os:plugin/tool-provider@0.1.0#call-tool")
    (param $name i32) (param i32 i32 i32 i64 i64 i32 i32) (result i32)
    (local $first i32)
    (local.set $first (i32.load8_u (local.get $name)))
    (if (i32.eq (local.get $first) (i32.const 102)) (then (call $spin)))             ;; fuel
    (if (i32.eq (local.get $first) (i32.const 119)) (then (call $spin)))             ;; wall
    (if (i32.eq (local.get $first) (i32.const 109)) (then (call $allocate)))         ;; memory
    (if (i32.eq (local.get $first) (i32.const 116)) (then (call $tabulate)))         ;; tables
    (if (i32.eq (local.get $first) (i32.const 115)) (then (drop (call $recurse (i32.const 0))))) ;; stack
    (if (i32.eq (local.get $first) (i32.const 108)) (then (call $chatter)))          ;; log
    (if (i32.eq (local.get $first) (i32.const 104)) (then (call $pester)))           ;; host-calls
    (if (i32.eq (local.get $first) (i32.const 111)) (then (call $flood)))            ;; output
    ;; result<json, error> at 256: `ok`, and what was put there, else an empty string
    (i32.const 256)))
