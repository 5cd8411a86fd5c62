//! The Secret is the only memory: each test reads it back between any two steps, as whoever takes over does.

use super::*;
use crate::authority::{external, external_with_key};
use crate::authority_stored::{external_content, new_content};

fn now() -> SystemTime {
    SystemTime::now()
}

fn entry(content: &Content, key: &str) -> Option<Vec<u8>> {
    content.get(key).map(|part| part.0.clone())
}

fn rotation(content: &Content) -> Rotation {
    Stored::of(content.clone()).rotation.unwrap().unwrap()
}

/// Moves on as a leader does that has just read the Secret.
fn next(content: &Content) -> Content {
    moved_on(content, &rotation(content), now()).unwrap()
}

#[test]
fn a_root_is_distributed_then_signs_and_then_the_old_one_is_gone() {
    let mut before = new_content().unwrap();
    before.insert("epoch".into(), ByteString(b"7".to_vec()));
    let old = Stored::of(before.clone());
    let old = old.authority.root();

    let distribute = begun(&before, Cause::Command, now()).unwrap();
    let there = Stored::of(distribute.clone());
    let new = there.roots[1].clone();
    assert_eq!(there.authority.root(), old, "it signs");
    assert_eq!(
        (there.roots.as_slice(), there.left()),
        (&[old.clone(), new.clone()][..], &[][..])
    );
    assert!(there.previous.is_none());

    let switch = next(&distribute);
    let there = Stored::of(switch.clone());
    assert_eq!(*there.authority.root(), new);
    assert_eq!(
        (there.roots.as_slice(), there.left()),
        (&[new.clone(), old.clone()][..], &[][..])
    );
    assert_eq!(
        there.previous.as_ref().unwrap().root(),
        old,
        "for gates that know no other"
    );

    let retire = next(&switch);
    let there = Stored::of(retire.clone());
    assert_eq!(*there.authority.root(), new);
    assert_eq!(
        (there.roots.as_slice(), there.left()),
        (&[new.clone()][..], &[old.id()][..])
    );
    assert!(there.previous.is_none() && there.retired.as_ref() == Some(old));
    let key = entry(&before, KEY).unwrap();
    assert!(retire.values().all(|part| part.0 != key), "its key is nowhere any more");

    let done = next(&retire);
    let there = Stored::of(done.clone());
    assert!(there.under_way().is_none());
    assert_eq!(there.left(), [old.id()], "it never comes back");
    assert_eq!(
        entry(&done, "epoch"),
        entry(&before, "epoch"),
        "what is beside it stays"
    );
    // And the next one follows.
    let again = begun(&done, Cause::Age, now()).unwrap();
    let there = Stored::of(next(&next(&again)));
    assert_eq!((there.retired.as_ref(), there.left()), (Some(&new), &[new.id()][..]));
}

/// Whoever is killed has either written a step or not. Any sequence of leaders ends with the same root, and at no moment is a
/// root trusted that wasn't before and didn't come after, or is the one that signs not trusted.
#[test]
fn whoever_is_killed_at_whatever_step_is_followed_by_somebody_who_goes_on() {
    fastrand::seed(5);
    for _ in 0..40 {
        let mut content = new_content().unwrap();
        let old = Stored::of(content.clone()).authority.root().id();
        content = begun(&content, Cause::Command, now()).unwrap();
        let new = rotation(&content).to;
        // What a leader knows who stood still since it read the Secret.
        let mut stale = Vec::new();
        let mut writes = 0;
        while rotation(&content).is_under_way() {
            let seen = rotation(&content);
            stale.push(seen.clone());
            let tried = &stale[fastrand::usize(..stale.len())];
            match moved_on(&content, tried, now()) {
                // Killed before the write counts, or after it.
                Ok(written) if fastrand::bool() => (content, writes) = (written, writes + 1),
                Ok(_) => {}
                Err(NotMoved::Overtaken) => assert_ne!(*tried, seen, "somebody else has moved on"),
                Err(error) => panic!("{error}"),
            }
            if fastrand::bool() {
                // An operator's word at any moment costs nothing.
                content = confirmed(&content).unwrap_or(content);
            }
            let there = Stored::of(content.clone());
            let roots: Vec<_> = there.roots.iter().map(Root::id).collect();
            assert!(roots.contains(&there.authority.root().id()));
            assert!(roots.iter().all(|root| [old, new].contains(root)), "{roots:?}");
        }
        let there = Stored::of(content);
        assert_eq!((writes, there.authority.root().id(), there.roots.len()), (3, new, 1));
    }
}

#[test]
fn no_step_is_taken_twice_and_no_second_replacement_begins() {
    let distribute = begun(&new_content().unwrap(), Cause::Command, now()).unwrap();
    let first = rotation(&distribute);
    let switch = next(&distribute);
    assert!(matches!(moved_on(&switch, &first, now()), Err(NotMoved::Overtaken)));
    let retire = next(&switch);
    for (content, step) in [
        (&distribute, Step::Distribute),
        (&switch, Step::Switch),
        (&retire, Step::Retire),
    ] {
        assert!(matches!(begun(content, Cause::Age, now()), Err(NotMoved::UnderWay(found)) if found == step));
    }
    let done = next(&retire);
    assert!(matches!(
        moved_on(&done, &rotation(&done), now()),
        Err(NotMoved::NothingUnderWay)
    ));
    let none = new_content().unwrap();
    assert!(matches!(moved_on(&none, &first, now()), Err(NotMoved::Overtaken)));
    assert!(matches!(
        begun(&Content::new(), Cause::Age, now()),
        Err(NotMoved::Empty)
    ));
}

#[test]
fn a_confirmation_is_for_one_step() {
    let none = new_content().unwrap();
    assert!(matches!(confirmed(&none), Err(NotMoved::NothingToConfirm)));
    let distribute = confirmed(&begun(&none, Cause::Command, now()).unwrap()).unwrap();
    assert!(rotation(&distribute).confirmed);
    assert!(
        matches!(confirmed(&distribute), Err(NotMoved::NothingToConfirm)),
        "once"
    );
    let switch = next(&distribute);
    assert!(!rotation(&switch).confirmed);
    let retire = next(&confirmed(&switch).unwrap());
    assert!(matches!(confirmed(&retire), Err(NotMoved::NothingToConfirm)));
}

#[test]
fn when_a_key_has_leaked_no_other_root_is_left_in_whatever_step_it_was() {
    let before = new_content().unwrap();
    let distribute = begun(&before, Cause::Command, now()).unwrap();
    let (switch, both) = (next(&distribute), rotation(&distribute));
    let done = next(&next(&switch));
    for (content, gone) in [
        (&before, vec![both.from[0]]),
        (&distribute, vec![both.from[0], both.to]),
        (&switch, vec![both.to, both.from[0]]),
        (&done, vec![both.to]),
    ] {
        let after = replaced_at_once(content, now()).unwrap();
        let there = Stored::of(after.clone());
        assert_eq!((there.left(), there.roots.len()), (gone.as_slice(), 1));
        assert!(there.retired.is_none(), "no pod that knows it is to be enrolled again");
        let found = rotation(&after);
        assert_eq!((found.step, found.cause), (Step::Retire, Cause::Leak));
        assert!(!gone.contains(&there.authority.root().id()));
        let keys: Vec<_> = [KEY, NEXT_KEY, PREVIOUS_KEY]
            .iter()
            .filter_map(|key| entry(content, key))
            .collect();
        assert!(
            after.values().all(|part| !keys.contains(&part.0)),
            "the old keys are gone"
        );
        assert!(!rotation(&next(&after)).is_under_way());
    }
}

#[test]
fn what_somebody_does_by_hand_is_left_to_them() {
    let (content, other) = (new_content().unwrap(), new_content().unwrap());
    for key in [NEXT_CERTIFICATE, PREVIOUS_CERTIFICATE] {
        let mut by_hand = content.clone();
        by_hand.insert(key.into(), other[CERTIFICATE].clone());
        let refused = begun(&by_hand, Cause::Age, now()).unwrap_err();
        assert!(matches!(refused, NotMoved::ByHand(found) if found == key), "{refused}");
        assert!(refused.to_string().contains(key), "{refused}");
    }
    let mut empty = content.clone();
    empty.insert(NEXT_CERTIFICATE.into(), ByteString::default());
    begun(&empty, Cause::Age, now()).unwrap();
}

#[test]
fn a_root_from_files_is_replaced_by_what_files_hold_and_by_nothing_else() {
    let (first, second) = (external(), external());
    let before = external_content(&first);
    assert!(matches!(begun(&before, Cause::Command, now()), Err(NotMoved::External)));
    let distribute = begun_from_files(&before, &second, now()).unwrap();
    let there = Stored::of(distribute.clone());
    assert_eq!(
        there.authority.root(),
        first.root(),
        "nobody else is known to everybody"
    );
    assert_eq!(there.roots[1], *second.root());
    assert_eq!(rotation(&distribute).cause, Cause::Files);
    assert!(matches!(
        begun_from_files(&distribute, &external(), now()),
        Err(NotMoved::UnderWay(Step::Distribute))
    ));
    let done = next(&next(&next(&distribute)));
    assert_eq!(Stored::of(done.clone()).authority.root(), second.root());
    // Whoever puts the old files back.
    assert!(matches!(begun_from_files(&done, &first, now()), Err(NotMoved::Left)));
    let third = begun_from_files(&done, &external(), now()).unwrap();
    let done = next(&next(&next(&third)));
    for old in [&first, &second] {
        assert!(matches!(begun_from_files(&done, old, now()), Err(NotMoved::Left)));
    }
}

#[test]
fn a_leaked_root_from_files_gives_way_at_once_and_is_not_taken_from_there_again() {
    let (leaked, other) = (external(), external());
    let retire = replaced_at_once(&external_content(&leaked), now()).unwrap();
    let there = Stored::of(retire.clone());
    assert!(there.authority.root() != leaked.root() && there.is_external());
    let done = next(&retire);
    assert!(matches!(begun_from_files(&done, &leaked, now()), Err(NotMoved::Left)));
    let distribute = begun_from_files(&done, &other, now()).unwrap();
    assert_eq!(Stored::of(distribute.clone()).roots[1], *other.root());
    // Nor after another replacement; nor its key under another certificate.
    let again = external_with_key(leaked.key_pem());
    assert_ne!(again.root().id(), leaked.root().id());
    let done = next(&next(&next(&distribute)));
    for bad in [&leaked, &again] {
        assert!(matches!(begun_from_files(&done, bad, now()), Err(NotMoved::Left)));
    }
    assert!(begun_from_files(&done, &external(), now()).is_ok());
}

#[test]
fn where_roots_come_from_can_change_and_the_root_stays() {
    let before = new_content().unwrap();
    let outside = sourced(&before, true);
    assert!(Stored::of(outside.clone()).is_external());
    assert!(begun(&outside, Cause::Age, now()).is_err());
    assert_eq!(sourced(&outside, false), before);
    assert!(begun(&before, Cause::Age, now()).is_ok());
}
