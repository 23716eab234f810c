//! What the programs of the comparison share: how a block of work is asked for and reported, what is computed from many
//! blocks, the servers, and the pictures.

pub mod block;
pub mod chart;
pub mod library;
pub mod measure;
pub mod plan;
pub mod report;
pub mod servers;
pub mod statistics;
pub mod wire;
pub mod work;
