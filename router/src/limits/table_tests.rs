use super::*;
use std::num::NonZeroU32;
use tokio::time::advance;

fn rate(per_second: u32, burst: u32) -> Rate {
    Rate {
        per_second: NonZeroU32::new(per_second).unwrap(),
        burst: NonZeroU32::new(burst).unwrap(),
    }
}

fn share(rate: Option<Rate>, concurrent: usize) -> Share {
    Share {
        rate,
        concurrent: NonZeroUsize::new(concurrent),
    }
}

/// Entries, and how many are known of those who made them.
fn known(table: &Table<u32, char>) -> (usize, usize) {
    let entries = lock(&table.entries);
    (entries.by_key.len(), entries.made.values().sum())
}

#[tokio::test(start_paused = true)]
async fn places_are_each_keys_own_and_come_back() {
    let table = Table::new(share(None, 2));
    let first = table.enter(1, &'a').unwrap();
    let _second = table.enter(1, &'b').unwrap();
    let two = NonZeroUsize::new(2).unwrap();
    assert_eq!(table.enter(1, &'c').unwrap_err(), Full::Concurrent(two));
    assert!(table.enter(2, &'a').is_ok());
    drop(first);
    let _third = table.enter(1, &'c').unwrap();
    assert_eq!(table.enter(1, &'c').unwrap_err(), Full::Concurrent(two));
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_each_keys_own_and_what_it_refuses_takes_no_place() {
    let rate = rate(2, 2);
    let table = Table::new(share(Some(rate), 3));
    let mut places: Vec<_> = (0..2).map(|_| table.enter(1, &'a').unwrap()).collect();
    let half = Duration::from_millis(500);
    for _ in 0..10 {
        assert_eq!(table.enter(1, &'a').unwrap_err(), Full::Rate(rate, half));
    }
    assert!(table.enter(2, &'a').is_ok());
    advance(half).await;
    places.push(table.enter(1, &'a').unwrap());
    // What the other limit refuses uses nothing of the rate up.
    advance(half).await;
    for _ in 0..10 {
        assert!(matches!(table.enter(1, &'a').unwrap_err(), Full::Concurrent(_)));
    }
    places.pop();
    assert!(table.enter(1, &'a').is_ok());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_remembered_of_whoever_has_nothing_under_way_and_may_come_as_often_as_ever() {
    let table = Table::new(share(None, 2));
    for key in 0..10_000 {
        drop(table.enter(key, &'a').unwrap());
    }
    assert_eq!(known(&table), (0, 0));

    let table = Table::new(share(Some(rate(1000, 1)), 0));
    for key in 0..100_000 {
        drop(table.enter(key, &'a').unwrap());
        advance(Duration::from_micros(100)).await;
    }
    let (entries, made) = known(&table);
    assert!(entries <= 2 * FEW && made == entries, "{entries} {made}");
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_with_ever_new_keys_has_half_of_the_table_at_most_and_pushes_nobody_out() {
    let table = Table::of_size(share(Some(rate(1, 2)), 0), 10);
    let _kept = table.enter(1_000, &'z').unwrap();
    drop(table.enter(1_000, &'z').unwrap());
    let entered = (0..1_000).filter(|key| table.enter(*key, &'a').is_ok()).count();
    assert_eq!(entered, 5);
    // What was used up is used up still, and others have room.
    assert!(matches!(table.enter(1_000, &'z'), Err(Full::Rate(..))));
    for key in 2_000..2_004 {
        assert!(table.enter(key, &'b').is_ok(), "{key}");
    }
    assert_eq!(table.enter(3_000, &'c').unwrap_err(), Full::Table);
    assert_eq!(known(&table), (10, 10));
    // Nobody is kept out for long.
    advance(Duration::from_secs(2)).await;
    assert!(table.enter(3_000, &'c').is_ok());
    assert_eq!(known(&table), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_place_outlasts_its_rate_and_an_entry_its_places() {
    let table = Table::of_size(share(Some(rate(1, 1)), 0), 4);
    let place = table.enter(1, &'a').unwrap();
    advance(Duration::from_secs(10)).await;
    let again = table.enter(1, &'a').unwrap();
    drop(place);
    assert_eq!(known(&table), (1, 1));
    drop(again);
    // Its rate is used up.
    assert_eq!(known(&table), (1, 1));
}
