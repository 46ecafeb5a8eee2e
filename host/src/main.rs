//! `aok`, the command line of the Agent OS Kernel. Everything is in the library.

fn main() -> std::process::ExitCode {
    agent_os_kernel::cli::main()
}
