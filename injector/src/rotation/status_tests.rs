use super::*;
use crate::rotation::blockers::{Names, Reason};
use crate::rotation::steps::each_after;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn rotation(stored: &Stored) -> Rotation {
    stored.rotation.clone().unwrap().unwrap()
}

#[test]
fn roots_are_shown_with_what_they_are_for_and_never_with_their_keys() {
    let before = Stored::new();
    let old = before.authority.root().id();
    let now = SystemTime::now();
    let text = shown(&before, None, now);
    assert!(
        text.starts_with("The root has never been replaced by itself.\n"),
        "{text}"
    );
    let ends = utc(before.authority.root().not_after()).to_string();
    assert!(
        text.contains(&format!("{old}  signs  ")) && text.contains(&ends),
        "{text}"
    );

    let [distribute, switch, retire] = each_after(&before);
    let new = rotation(&distribute).to;
    for (stored, lines) in [
        (
            &distribute,
            vec![format!("{old}  signs"), format!("{new}  trusted, signs next")],
        ),
        (&switch, vec![format!("{new}  signs"), format!("{old}  trusted")]),
        (&retire, vec![format!("{new}  signs")]),
    ] {
        let text = shown(stored, None, now);
        let step = rotation(stored).step;
        assert!(
            text.starts_with(&format!("The root is being replaced (command): step {step} since ")),
            "{text}"
        );
        assert!(text.contains("The leader hasn't told yet"), "{text}");
        let found: Vec<_> = text
            .lines()
            .skip_while(|line| !line.starts_with("ROOT"))
            .skip(1)
            .collect();
        assert_eq!(found.len(), lines.len(), "{text}");
        for (found, line) in found.iter().zip(&lines) {
            assert!(found.starts_with(line.as_str()), "{text}");
        }
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}

#[test]
fn what_a_step_waits_for_is_shown_with_names_and_what_to_do() {
    let [_, switch, retire] = each_after(&Stored::new());
    let mut names = Names::default();
    for number in 0..12 {
        names.add(&"team".parse().unwrap(), &format!("box-{number:02}").parse().unwrap());
    }
    let waits_for = vec![
        Blocker {
            reason: Reason::Pods,
            count: names.count,
            names: names.first,
        },
        Blocker::new(Reason::Confirmation),
    ];
    let status = Status::new(&rotation(&switch), waits_for, at(1_000_000_000));
    let told = serde_json::to_string(&status).unwrap();
    let text = shown(&switch, Some(&told), SystemTime::now());
    for part in [
        "Waits for, unchanged since 2001-09-09T01:46:40",
        "  pods (12): pods that were created before",
        "\n    team/box-00\n",
        "\n    team/box-09\n    and 2 more\n",
        "  confirmation (1): routers that aren't enrolled must show certificates under the new root",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Told of an earlier step, it says nothing about this one.
    let text = shown(&retire, Some(&told), SystemTime::now());
    assert!(
        text.contains("The leader hasn't told yet") && !text.contains("box-00"),
        "{text}"
    );
    let text = shown(&switch, Some("junk"), SystemTime::now());
    assert!(text.contains("The leader hasn't told yet"), "{text}");
}

#[test]
fn a_status_is_news_when_what_it_waits_for_has_changed_and_not_when_time_has_passed() {
    let [distribute, switch, _] = each_after(&Stored::new());
    let of = |stored: &Stored, reason, seconds| Status::new(&rotation(stored), vec![Blocker::new(reason)], at(seconds));
    let told = of(&distribute, Reason::Gates, 1);
    assert!(told.tells_the_same(&of(&distribute, Reason::Gates, 2)));
    assert!(!told.tells_the_same(&of(&distribute, Reason::Pods, 1)));
    assert!(!told.tells_the_same(&of(&switch, Reason::Gates, 1)));
}
