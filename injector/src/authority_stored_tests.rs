use super::*;

fn refused(content: Content) -> (&'static str, AuthorityError) {
    Stored::read(content).err().expect("refused")
}

#[test]
fn a_new_secret_reads_back() {
    let stored = Stored::of(new_content().unwrap());
    assert_eq!(stored.roots, [stored.authority.root().clone()]);
}

#[test]
fn a_next_root_is_trusted_and_does_not_sign() {
    let (mut content, next) = (new_content().unwrap(), new_content().unwrap());
    content.insert(NEXT_CERTIFICATE.into(), next[CERTIFICATE].clone());
    let stored = Stored::of(content);
    let next = Root::from_pem(&next[CERTIFICATE].0).unwrap();
    assert_eq!(stored.roots, [stored.authority.root().clone(), next.clone()]);
    assert_ne!(*stored.authority.root(), next);
}

#[test]
fn the_key_that_does_not_fit_is_named() {
    let (content, other) = (new_content().unwrap(), new_content().unwrap());
    let with = |key: &str, part: &ByteString| {
        let mut content = content.clone();
        content.insert(key.into(), part.clone());
        content
    };
    assert_eq!(refused(Content::new()), (CERTIFICATE, AuthorityError::NotOne(0)));
    assert_eq!(refused(with(KEY, &other[KEY])), (KEY, AuthorityError::KeyMismatch));
    assert_eq!(refused(with(KEY, &content[CERTIFICATE])), (KEY, AuthorityError::Key));
    let junk = ByteString(b"junk".to_vec());
    assert_eq!(
        refused(with(NEXT_CERTIFICATE, &junk)),
        (NEXT_CERTIFICATE, AuthorityError::NotOne(0))
    );
}

/// A rotation in a step, and another root that has nothing to do with it.
fn in_step(place: usize) -> (Content, Content) {
    let steps = crate::rotation::steps::each_after(&Stored::new());
    (steps[place].content.clone(), new_content().unwrap())
}

fn misfit(content: Content) -> Misfit {
    let stored = Stored::of(content);
    assert!(stored.under_way().is_none() && stored.left().is_empty());
    stored.rotation.unwrap_err()
}

#[test]
fn roots_that_were_changed_by_hand_stop_a_replacement_and_serve() {
    let (distribute, other) = in_step(0);
    for (key, from) in [(NEXT_CERTIFICATE, CERTIFICATE), (PREVIOUS_CERTIFICATE, CERTIFICATE)] {
        let mut changed = distribute.clone();
        changed.insert(key.into(), other[from].clone());
        assert_eq!(misfit(changed), Misfit::OtherRoots(Step::Distribute), "{key}");
    }
    let mut changed = distribute.clone();
    changed.remove(NEXT_CERTIFICATE);
    assert_eq!(misfit(changed), Misfit::OtherRoots(Step::Distribute));
    for (key, told) in [
        (None, AuthorityError::Key),
        (Some(&other[KEY]), AuthorityError::KeyMismatch),
    ] {
        let mut changed = distribute.clone();
        match key {
            Some(key) => drop(changed.insert(NEXT_KEY.into(), key.clone())),
            None => drop(changed.remove(NEXT_KEY)),
        }
        assert_eq!(misfit(changed), Misfit::NextKey(told));
    }
    for place in [1, 2] {
        let (mut changed, other) = in_step(place);
        changed.insert(CERTIFICATE.into(), other[CERTIFICATE].clone());
        changed.insert(KEY.into(), other[KEY].clone());
        let step = [Step::Switch, Step::Retire][place - 1];
        assert_eq!(misfit(changed), Misfit::OtherRoots(step));
    }
    let (mut changed, _) = in_step(1);
    changed.remove(PREVIOUS_CERTIFICATE);
    assert_eq!(misfit(changed), Misfit::OtherRoots(Step::Switch));
}

#[test]
fn a_rotation_that_cannot_be_read_is_no_reason_not_to_sign() {
    let (good, _) = in_step(0);
    let text = String::from_utf8(good[ROTATION].0.clone()).unwrap();
    for bad in [
        "x".to_owned(),
        "{}".to_owned(),
        text.replace("distribute", "later"),
        text.replace("\"confirmed\"", "\"of a later release\""),
    ] {
        let mut content = good.clone();
        content.insert(ROTATION.into(), ByteString(bad.clone().into_bytes()));
        let stored = Stored::of(content);
        assert!(matches!(stored.rotation, Err(Misfit::Unreadable(_))), "{bad}");
        assert_eq!(stored.roots.len(), 2);
    }
}

#[test]
fn a_key_of_the_previous_root_that_is_not_its_own_is_named() {
    let (mut switch, other) = in_step(1);
    switch.insert(PREVIOUS_KEY.into(), other[KEY].clone());
    assert_eq!(refused(switch), (PREVIOUS_KEY, AuthorityError::KeyMismatch));
}

/// Nothing that it signed counts any more, and nothing under it could be verified: whoever still had it in a bundle would only
/// be slower to say so.
#[test]
fn a_previous_root_that_has_expired_is_trusted_no_more_and_holds_nothing_up() {
    let day = std::time::Duration::from_secs(24 * 3600);
    let before = |not_after| {
        let root = NewRoot::valid_until(not_after).unwrap();
        Content::from([part(CERTIFICATE, root.certificate_pem), part(KEY, root.key_pem)])
    };
    let now = SystemTime::now();
    let valid = Stored::of(before(now + day));
    let [_, switch, _] = crate::rotation::steps::each_after(&valid);
    assert_eq!(
        switch.roots,
        [switch.authority.root(), valid.authority.root()].map(Clone::clone)
    );
    assert!(switch.previous.is_some() && switch.leaves.as_ref() == Some(valid.authority.root()));

    // As it is when the replacement has waited until then: for a pod that doesn't end, or a word that nobody says.
    let mut content = switch.content.clone();
    let expired = before(now - day);
    for (entry, from) in [(PREVIOUS_CERTIFICATE, CERTIFICATE), (PREVIOUS_KEY, KEY)] {
        content.insert(entry.into(), expired[from].clone());
    }
    let old = Root::from_pem(&expired[CERTIFICATE].0).unwrap();
    let rotation = Rotation {
        from: vec![old.id()],
        ..switch.under_way().unwrap().clone()
    };
    content.insert(ROTATION.into(), ByteString(serde_json::to_vec(&rotation).unwrap()));
    let stored = Stored::of(content.clone());
    assert_eq!(stored.roots, [switch.authority.root().clone()]);
    assert!(stored.previous.is_none() && stored.leaves.is_none());
    assert_eq!(stored.under_way(), Some(&rotation), "it is still in that step");
    let retire = crate::rotation::steps::moved_on(&content, &rotation, now).unwrap();
    assert_eq!(Stored::of(retire).left(), [old.id()]);
    // The one that signs is another matter: nobody would believe what it signs.
    assert_eq!(refused(expired), (CERTIFICATE, AuthorityError::NotValidNow));
}

/// Whoever replaces the root by hand afterwards begins anew.
#[test]
fn what_was_retired_before_a_root_was_replaced_by_hand_has_nothing_to_say() {
    let (retire, other) = in_step(2);
    let rotation = Stored::of(retire.clone()).rotation.unwrap().unwrap();
    let mut done = crate::rotation::steps::moved_on(&retire, &rotation, SystemTime::now()).unwrap();
    assert_eq!(Stored::of(done.clone()).left(), rotation.from);
    done.insert(CERTIFICATE.into(), other[CERTIFICATE].clone());
    done.insert(KEY.into(), other[KEY].clone());
    let stored = Stored::of(done);
    assert!(matches!(stored.rotation, Ok(None)) && stored.left().is_empty());
}
