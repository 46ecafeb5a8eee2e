//! What the whole-system tests share.

pub mod fake_llm;
pub mod figure;
pub mod stub;
