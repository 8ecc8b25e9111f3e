//! What every hot store must do.

use super::Fixture;

tidegate_core::hot_store_contract!(Fixture::new());
