//! States and commands for tests.
