//! The canned SQL of `docs/sql`, run over a generated fleet: with one process of DataFusion, and (with the feature `ballista`)
//! with Ballista, a scheduler and executors in processes of their own.

#[cfg(feature = "ballista")]
pub mod cluster;
pub mod compact;
pub mod hosts;
pub mod queries;
