//! The one engine configuration: compiling and running share it, and so do the pool and its fallback.

use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Guest stack in bytes; the `stack` limit.
pub(crate) const WASM_STACK: usize = 512 * 1024;

/// Fiber stack in bytes. What is over [`WASM_STACK`] is room for host code under a guest.
const FIBER_STACK: usize = 2 * 1024 * 1024;

/// Address space per memory. Part of every artefact's identity, so the fallback keeps it.
const MEMORY_RESERVATION: u64 = 4 << 30;
const MEMORY_GUARD: u64 = 64 * 1024;

/// The most that one memory may hold under the pool, whatever the limits say.
const MAX_MEMORY: usize = 1 << 30;

/// Instances at once: agents, and the tools that they run. With [`MEMORY_RESERVATION`] for each a pool takes 40 TiB of
/// address space. Linux leaves 42 above a program and 85 below, so two more find room: the second engine's, and that of a
/// baseline in the same process. At 12 000 the second one did not, and its instances were allocated on demand.
pub(crate) const MAX_COMPONENTS: u32 = 10_200;

/// The configuration, with the pooling allocator or without. Public for embedders that compile
/// components ahead of time and for benches: an artefact fits only an engine of this configuration.
/// `concurrency` is component-model async, which makes each warm call of any component 2.5 to 4 times dearer.
#[must_use]
pub fn config(pooling: bool, concurrency: bool) -> Config {
    let mut config = Config::new();
    config
        .consume_fuel(true)
        .epoch_interruption(true)
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(FIBER_STACK)
        .memory_reservation(MEMORY_RESERVATION)
        .memory_guard_size(MEMORY_GUARD)
        .wasm_component_model(true)
        .concurrency_support(concurrency);
    if pooling {
        let mut pool = PoolingAllocationConfig::new();
        pool.total_component_instances(MAX_COMPONENTS)
            .total_core_instances(MAX_COMPONENTS * 8)
            .total_memories(MAX_COMPONENTS)
            .total_tables(MAX_COMPONENTS * 4)
            .total_stacks(MAX_COMPONENTS)
            .max_memory_size(MAX_MEMORY)
            .max_memories_per_component(16)
            .max_tables_per_component(64)
            .max_memories_per_module(2)
            .max_tables_per_module(2)
            .table_elements(20_000)
            .pagemap_scan(Enabled::Auto)
            .linear_memory_keep_resident(2 * 1024 * 1024)
            .table_keep_resident(64 * 1024);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pools_have_room_in_one_process() {
        let engines = [false, true].map(|concurrency| wasmtime::Engine::new(&config(true, concurrency)));
        for engine in engines {
            engine.unwrap();
        }
    }
}
