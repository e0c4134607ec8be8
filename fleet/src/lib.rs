//! Nothing but tests: `cargo test --manifest-path fleet/Cargo.toml`.
