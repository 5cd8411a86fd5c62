use super::*;
use crate::metrics::Metrics;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::advance;

const BELIEVED: Duration = Duration::from_secs(30);

type Question = Result<Answer<&'static str>, String>;

fn reviews(size: usize) -> Reviews<&'static str> {
    let metrics = Metrics::new().unwrap();
    Reviews::new("token", BELIEVED, size, metrics.reviews("token"))
}

fn key(text: &str) -> Key {
    Key::of(&[text.as_bytes()])
}

/// One of many addresses.
fn client(number: u32) -> Who {
    Who::At(std::net::Ipv4Addr::from(number).into())
}

async fn allowed(reviews: &Reviews<&'static str>, text: &str) {
    let outcome = reviews
        .ask(key(text), client(1), async { Ok(Answer::Yes("alice")) })
        .await;
    assert_eq!(outcome, Ok(Answer::Yes("alice")));
}

async fn refused(reviews: &Reviews<&'static str>, text: &str) {
    assert_eq!(
        reviews.ask(key(text), client(1), async { Ok(Answer::No) }).await,
        Ok(Answer::No)
    );
}

/// Lets every task that can go on do so.
async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

#[test]
fn a_key_is_the_digest_of_what_is_asked_and_not_the_token() {
    // FIPS 180-4, the example of one block.
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let byte = |at: usize| u8::from_str_radix(&digest[at..at + 2], 16).unwrap();
    assert_eq!(key("abc"), Key(std::array::from_fn(|index| byte(2 * index))));
    assert_eq!(key("abc"), Key::of(&[b"a", b"bc"]));
    assert_ne!(key("abc"), key("abd"));
}

#[tokio::test(start_paused = true)]
async fn what_is_allowed_is_believed_for_its_time_and_not_longer() {
    let reviews = reviews(10);
    allowed(&reviews, "good").await;
    advance(BELIEVED / 2).await;
    assert_eq!(reviews.find(&key("good")), Some(Ok(Answer::Yes("alice"))));
    advance(BELIEVED / 2).await;
    assert_eq!(reviews.find(&key("good")), None);
    refused(&reviews, "good").await;
    assert_eq!(reviews.find(&key("good")), Some(Ok(Answer::No)));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_or_had_no_answer_is_remembered_for_less_long() {
    let reviews = reviews(10);
    refused(&reviews, "bad").await;
    let failed = reviews
        .ask(key("away"), client(1), async { Err("connection refused".into()) })
        .await;
    assert_eq!(failed, Err(Unanswered::Failed));
    assert_eq!(reviews.find(&key("bad")), Some(Ok(Answer::No)));
    assert_eq!(reviews.find(&key("away")), Some(Err(Unanswered::Failed)));
    advance(FAILED).await;
    assert_eq!(reviews.find(&key("away")), None);
    assert_eq!(reviews.find(&key("bad")), Some(Ok(Answer::No)));
    advance(REFUSED).await;
    assert_eq!(reviews.find(&key("bad")), None);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_made_up_tokens_push_no_good_one_out_and_memory_has_an_end() {
    let reviews = reviews(10);
    allowed(&reviews, "good").await;
    for number in 0..1000 {
        refused(&reviews, &format!("garbage-{number}")).await;
    }
    assert_eq!(reviews.find(&key("good")), Some(Ok(Answer::Yes("alice"))));
    let known = reviews.0.known();
    assert_eq!((known.others.entries.len(), known.others.order.len()), (10, 10));
    assert_eq!((known.allowed.entries.len(), known.pending.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn of_too_many_that_are_allowed_the_oldest_goes() {
    let reviews = reviews(3);
    for token in ["a", "b", "c", "d"] {
        allowed(&reviews, token).await;
    }
    assert_eq!(reviews.find(&key("a")), None);
    for token in ["b", "c", "d"] {
        assert!(reviews.find(&key(token)).is_some(), "{token}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_was_renewed_stays_when_its_first_time_is_over() {
    let reviews = reviews(10);
    allowed(&reviews, "good").await;
    advance(BELIEVED).await;
    allowed(&reviews, "good").await;
    allowed(&reviews, "other").await;
    assert_eq!(reviews.find(&key("good")), Some(Ok(Answer::Yes("alice"))));
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_pending_is_asked_once_for_all_who_wait() {
    let reviews = Arc::new(reviews(10));
    let asked = Arc::new(AtomicUsize::new(0));
    let (answer, answered) = oneshot::channel::<Question>();
    let mut answered = Some(answered);
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let (reviews, asked, answered) = (Arc::clone(&reviews), Arc::clone(&asked), answered.take());
            tokio::spawn(async move {
                let question = async move {
                    asked.fetch_add(1, Ordering::Relaxed);
                    answered.unwrap().await.unwrap()
                };
                reviews.ask(key("good"), client(1), question).await
            })
        })
        .collect();
    settle().await;
    answer.send(Ok(Answer::Yes("alice"))).unwrap();
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), Ok(Answer::Yes("alice")));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert_eq!(reviews.0.metrics.joined.get(), 49);
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_although_whoever_asked_it_has_gone() {
    let reviews = Arc::new(reviews(10));
    let (answer, answered) = oneshot::channel::<Question>();
    let asking = Arc::clone(&reviews);
    let first = tokio::spawn(async move {
        asking
            .ask(key("good"), client(1), async { answered.await.unwrap() })
            .await
    });
    settle().await;
    let joining = Arc::clone(&reviews);
    let second = tokio::spawn(async move { joining.ask(key("good"), client(1), async { unreachable!() }).await });
    settle().await;
    first.abort();
    settle().await;
    answer.send(Ok(Answer::Yes("alice"))).unwrap();
    assert_eq!(second.await.unwrap(), Ok(Answer::Yes("alice")));
    assert_eq!(reviews.find(&key("good")), Some(Ok(Answer::Yes("alice"))));
}

#[tokio::test(start_paused = true)]
async fn no_more_are_asked_at_once_than_there_are_places_and_what_is_known_needs_none() {
    let reviews = Arc::new(reviews(10));
    allowed(&reviews, "good").await;
    let asked = Arc::new(AtomicUsize::new(0));
    let waiting: Vec<_> = (0..1000)
        .map(|number| {
            let (reviews, asked) = (Arc::clone(&reviews), Arc::clone(&asked));
            tokio::spawn(async move {
                let question = async move {
                    asked.fetch_add(1, Ordering::Relaxed);
                    std::future::pending::<Question>().await
                };
                reviews
                    .ask(key(&format!("garbage-{number}")), client(number), question)
                    .await
            })
        })
        .collect();
    settle().await;
    assert_eq!(asked.load(Ordering::Relaxed), PLACES);
    assert_eq!(reviews.0.metrics.shed.get(), 1000 - PLACES as u64);
    assert_eq!(reviews.find(&key("good")), Some(Ok(Answer::Yes("alice"))));
    // None of them has a place for ever.
    advance(PATIENCE).await;
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), Err(Unanswered::Failed));
    }
    assert_eq!(reviews.0.places.available_permits(), PLACES);
    allowed(&reviews, "another").await;
}

#[tokio::test(start_paused = true)]
async fn whoever_makes_up_ever_new_tokens_has_half_of_the_places_and_others_find_one() {
    let reviews = Arc::new(reviews(10));
    let mut waiting: Vec<_> = (0..1000)
        .map(|number| {
            let reviews = Arc::clone(&reviews);
            let key = key(&format!("garbage-{number}"));
            tokio::spawn(async move { reviews.ask(key, client(1), std::future::pending::<Question>()).await })
        })
        .collect();
    settle().await;
    assert_eq!(reviews.0.places.available_permits(), PLACES - SHARE);
    assert_eq!(reviews.0.metrics.limited.get(), 1000 - SHARE as u64);
    for over in waiting.drain(SHARE..) {
        assert_eq!(over.await.unwrap(), Err(Unanswered::TooMany));
    }
    let other = reviews
        .ask(key("good"), client(2), async { Ok(Answer::Yes("alice")) })
        .await;
    assert_eq!(other, Ok(Answer::Yes("alice")));
    // He gets his places back, and leaves nothing behind.
    advance(PATIENCE).await;
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), Err(Unanswered::Failed));
    }
    allowed(&reviews, "another").await;
    assert!(reviews.0.known().asking.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_question_that_panics_leaves_its_place_and_can_be_asked_again() {
    let reviews = reviews(10);
    let broken = reviews.ask(key("good"), client(1), async { panic!("in a test") }).await;
    assert_eq!(broken, Err(Unanswered::Failed));
    assert_eq!(reviews.0.places.available_permits(), PLACES);
    allowed(&reviews, "good").await;
}
