//! The contracts of the two ports, as cases that every backend must pass.
//!
//! A suite runs them over a backend with one line, `storage_contract!(folder, crate::folder)`: a name, and an async function
//! that makes a fresh, empty backend.

pub mod broker;
pub mod storage;

use std::time::Duration;

/// Longest time that a case may take. It only ends a case that hangs.
pub const CASE_TIME_MAX: Duration = Duration::from_secs(120);

/// Makes a test of each named case of a contract.
#[macro_export]
macro_rules! contract_cases {
    ($fresh:path, $contract:path, $($case:ident),+ $(,)?) => {
        use $contract as contract;
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() -> anyhow::Result<()> {
                let fresh = $fresh().await?;
                tokio::time::timeout($crate::contract::CASE_TIME_MAX, contract::$case(&fresh)).await?
            }
        )+
    };
}
