//! sim
pub mod check;
pub mod choose;
pub mod clock;
pub mod fault;
pub mod history;
pub mod mutant;
mod part;
pub mod scope;
pub mod search;
pub mod world;
