//! dev

pub mod expected;
mod history;
mod minute;
pub mod policy;
mod queue;
mod shares;
pub mod sim;
pub mod weight;

pub use minute::Limits;
pub use policy::Policy;
pub use queue::{Next, Queue, Standing, Ticket};
