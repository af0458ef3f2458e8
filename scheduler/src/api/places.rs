//! How many may be at something at a time: of one tenant, of all whose token is not known, and in all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::Refusal;

/// Places for those who are at something.
pub(super) struct Places {
    all: Arc<Semaphore>,
    /// Places of each tenant.
    each: usize,
    of_tenant: Mutex<HashMap<String, Arc<Semaphore>>>,
    of_strangers: Arc<Semaphore>,
}

/// A place, until it is dropped.
pub(super) struct Place {
    _own: OwnedSemaphorePermit,
    _shared: OwnedSemaphorePermit,
}

impl Places {
    /// So many in all, for each tenant, and for all strangers together.
    pub(super) fn new(all: usize, each: usize, of_strangers: usize) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { all: places(all), each, of_tenant: Mutex::default(), of_strangers: places(of_strangers) }
    }

    /// Takes a place for a tenant, or for a stranger.
    ///
    /// # Errors
    /// When it has as many as it may have, or all are taken.
    pub(super) fn take(&self, tenant: Option<&str>) -> Result<Place, Refusal> {
        let own = tenant.map_or_else(|| Arc::clone(&self.of_strangers), |tenant| self.of(tenant));
        let own = own.try_acquire_owned().map_err(|_| Refusal::too_many_requests())?;
        let shared = Arc::clone(&self.all).try_acquire_owned().map_err(|_| Refusal::busy())?;
        Ok(Place { _own: own, _shared: shared })
    }

    /// The places of a tenant. Names are those of files of tokens: few.
    fn of(&self, tenant: &str) -> Arc<Semaphore> {
        let mut all = self.of_tenant.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(tenant.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(self.each))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::answer::Ground;

    #[test]
    fn each_has_its_own_places_and_all_have_so_many_together() {
        let places = Places::new(3, 2, 0);
        let code = |taken: Result<Place, Refusal>| taken.err().map(|refusal| serde_json::json!(refusal.problem().code));
        let refused = |ground: Ground| Some(serde_json::json!(ground));
        let (first, second) = (places.take(Some("a")).expect("a place"), places.take(Some("a")).expect("a place"));
        assert_eq!(code(places.take(Some("a"))), refused(Ground::TooManyRequests));
        assert_eq!(code(places.take(None)), refused(Ground::TooManyRequests));
        let other = places.take(Some("b")).expect("a place");
        assert_eq!(code(places.take(Some("b"))), refused(Ground::Busy));
        drop(first);
        assert_eq!(code(places.take(Some("b"))), None);
        drop((second, other));
    }
}
