//! Messages of one binding go one after the other, in the order in which they arrived. It knows only keys.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// The maximum number of places in a lane. Those who wait use up what others need.
const MAX_PLACES: usize = 32;

/// The lanes that are in use, by key.
#[derive(Debug)]
pub struct Lanes<K: Eq + Hash>(Arc<Mutex<HashMap<K, Arc<Turn<()>>>>>);

impl<K: Eq + Hash> Clone for Lanes<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Eq + Hash> Default for Lanes<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// A place in a lane, which is left when this is dropped. Once it is this place's turn, the lane is its own.
#[derive(Debug)]
pub struct Place<K: Eq + Hash> {
    lanes: Lanes<K>,
    key: K,
    turn: Option<Arc<Turn<()>>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K: Eq + Hash + Clone> Lanes<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<Turn<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn in the lane of `key`; `None` if too many wait already. Turns are taken in the order of the first polls of the
    /// returned futures.
    pub async fn enter(&self, key: K) -> Option<Place<K>> {
        let turn = {
            let mut lanes = self.lock();
            let turn = lanes.entry(key.clone()).or_default();
            // The map has one, and each place two.
            if Arc::strong_count(turn) > 2 * MAX_PLACES {
                return None;
            }
            turn.clone()
        };
        // If the caller gives up waiting, the place is left.
        let mut place = Place { lanes: self.clone(), key, turn: Some(turn.clone()), guard: None };
        place.guard = Some(turn.lock_owned().await);
        Some(place)
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        self.guard = None;
        let mut lanes = self.lanes.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.turn = None;
        if lanes.get(&self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            lanes.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::pin::pin;

    #[tokio::test]
    async fn turns_of_a_key_are_taken_in_order_and_others_do_not_wait() {
        let lanes = Lanes::default();
        let first = lanes.enter("a").await.unwrap();
        let (mut second, mut third) = (pin!(lanes.enter("a")), pin!(lanes.enter("a")));
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        drop(lanes.enter("b").now_or_never().expect("another key"));
        drop(first);
        assert!(third.as_mut().now_or_never().is_none(), "the second is before it");
        drop(second.now_or_never().flatten().expect("its turn"));
        drop(third.now_or_never().flatten().expect("its turn"));
        assert!(lanes.lock().is_empty());
    }

    #[tokio::test]
    async fn number_of_places_in_a_lane_is_bounded() {
        let lanes = Lanes::default();
        let mut places: Vec<_> = (0..MAX_PLACES).map(|_| Box::pin(lanes.enter("a"))).collect();
        let first = places.remove(0).await.unwrap();
        assert!(places.iter_mut().all(|place| place.as_mut().now_or_never().is_none()), "they wait");
        assert!(lanes.enter("a").await.is_none() && lanes.enter("b").await.is_some());
        drop(first);
        drop(places);
        assert!(lanes.enter("a").await.is_some());
    }

    #[tokio::test]
    async fn place_that_is_given_up_is_left() {
        let lanes = Lanes::default();
        let first = lanes.enter("a").await.unwrap();
        assert!(lanes.enter("a").now_or_never().is_none());
        drop(first);
        assert!(lanes.lock().is_empty());
        lanes.enter("a").now_or_never().expect("nobody is before it");
    }
}
