//! A panic ends an instance without a word; its message goes into the log of the calling process first.

/// Called at the start of each exported function.
#[doc(hidden)]
pub fn report_panics() {
    std::panic::set_hook(Box::new(|panic| crate::log::error(&panic.to_string())));
}
