//! `aok`, the command line of the Agent OS Kernel. Everything is in the library.

/// A call makes many small, short-lived allocations: mimalloc takes about half of the C library's time
/// for them. A library leaves the choice to its program, so it is made here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    agent_os_kernel::cli::main()
}
