;; An agent by what it exports, which asks for the network: it is refused before anything of it runs.
(component
  (import "wasi:http/outgoing-handler@0.2.0" (instance))
  (instance $entry)
  (export "agent-os:agent/agent-entry@0.1.0" (instance $entry)))
