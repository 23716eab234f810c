//! The entropy door: where the random numbers of an attempt come from.

use crate::protocol::claim::Draw;
use crate::protocol::command::LeaseId;

/// Draws random numbers.
pub trait Entropy: Send + Sync + 'static {
    /// A LeaseId that nobody ever had, and a uniform jitter.
    fn draw(&self) -> Draw;
}

/// The operating system's generator for the LeaseId, asked anew at each attempt, so that a forked process shares nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn draw(&self) -> Draw {
        Draw { lease_id: LeaseId(uuid::Uuid::new_v4().as_u128()), jitter: rand::random() }
    }
}
