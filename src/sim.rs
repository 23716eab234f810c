//! sim
pub mod check;
pub mod choose;
pub mod clock;
pub mod fault;
pub mod history;
pub mod mutant;
pub mod scope;
pub mod world;
