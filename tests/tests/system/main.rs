//! Whole-system tests, one binary with a module per subject.

mod audit;
mod bad_input;
mod cli;
mod hostile;
mod layers;
mod llm;
mod support;
