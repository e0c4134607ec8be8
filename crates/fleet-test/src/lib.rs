//! Nothing but tests: `cargo test --manifest-path crates/fleet-test/Cargo.toml`.
