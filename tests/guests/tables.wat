;; A tool that grows a table for ever. Rust has no way to say that, so it is written by hand: the core
;; module of a component for the `tool` world.
(module
  (memory (export "memory") 1)
  (table $t 1 funcref)
  (global $next (mut i32) (i32.const 4096))
  (data (i32.const 16) "grow_tables")
  (data (i32.const 32) "Grows a table for ever.")
  (data (i32.const 64) "{\"type\":\"object\"}")
  ;; list<tool-spec>: one record at 144
  (data (i32.const 128) "\90\00\00\00\01\00\00\00")
  ;; name, description, input-schema, no output-schema, effect `pure`
  (data (i32.const 144)
    "\10\00\00\00\0b\00\00\00" "\20\00\00\00\17\00\00\00" "\40\00\00\00\11\00\00\00"
    "\00\00\00\00\00\00\00\00\00\00\00\00" "\00\00\00\00")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $start i32) (local $mask i32)
    (local.set $mask (i32.sub (local.get 2) (i32.const 1)))
    (local.set $start
      (i32.and (i32.add (global.get $next) (local.get $mask)) (i32.xor (local.get $mask) (i32.const -1))))
    (global.set $next (i32.add (local.get $start) (local.get 3)))
    (local.get $start))
  (func (export "agent-os:plugin/tool-provider@0.1.0#list-tools") (result i32) (i32.const 128))
  (func (export "agent-os:plugin/tool-provider@0.1.0#call-tool")
    (param i32 i32 i32 i32 i64 i64 i32 i32) (result i32)
    (loop $more
      (drop (table.grow $t (ref.null func) (i32.const 1000)))
      (br $more))
    (unreachable)))
