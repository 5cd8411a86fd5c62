use super::*;
use clap::value_parser;

fn command() -> Command {
    let secret = |text: &str| match text {
        "good" => Ok(Secret::from(text.to_owned())),
        _ => Err(format!("{text:?} is no secret")),
    };
    Command::new("test")
        .no_binary_name(true)
        .args_override_self(true)
        .args([
            Arg::new("count").long("count").value_parser(value_parser!(u16)),
            Arg::new("secret").long("secret").value_parser(secret),
        ])
}

fn line(args: &[&str]) -> CommandLine {
    CommandLine::new("test", command(), args.iter().map(Into::into).collect())
}

#[test]
fn a_secret_that_is_refused_is_not_shown() {
    for args in [&["--secret=hunter2"][..], &["--secret", "hunter2"]] {
        let mut line = line(args);
        assert!(line.matches().unwrap().get_one::<Secret>("secret").is_none());
        let text = line.end(Some(())).unwrap_err().to_string();
        assert!(
            text.contains("invalid value for '--secret <secret>'") && !text.contains("hunter2"),
            "{text}"
        );
    }
    let matches = line(&["--secret=good"]).matches().unwrap();
    let secret = matches.get_one::<Secret>("secret").unwrap();
    assert_eq!((&**secret, format!("{secret:?}").as_str()), ("good", "a secret"));
}

#[test]
fn bad_values_of_a_subcommand_are_said_together_too() {
    let command = Command::new("test")
        .no_binary_name(true)
        .subcommand(command().name("once"));
    let args = ["once", "--count=x", "--secret", "hunter2"].map(Into::into).into();
    let mut line = CommandLine::new("test", command, args);
    assert!(line.matches().is_ok());
    assert!(
        line.problems.len() == 2 && !line.problems.concat().contains("hunter2"),
        "{:?}",
        line.problems
    );
}

#[test]
fn what_is_put_in_front_counts_only_where_the_line_says_nothing() {
    let mut line = line(&["--count=1"]);
    assert!(line.flags().unwrap().get_one::<u16>("count").is_some());
    line.put_in_front(["--count=2".into(), "--secret=good".into()]);
    let matches = line.matches().unwrap();
    assert_eq!(matches.get_one::<u16>("count"), Some(&1));
    assert!(matches.get_one::<Secret>("secret").is_some());
    assert!(line.end(Some(())).is_ok());
}

#[test]
fn flags_are_judged_by_themselves() {
    assert!(refusals(&command(), vec!["--count=1".into()]).is_empty());
    let found = refusals(
        &command(),
        ["--count=x", "--count=70000", "--count=2"].map(Into::into).into(),
    );
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("invalid value 'x' for '--count <count>': "),
        "{found:?}"
    );
    assert_eq!(refusals(&command(), vec!["--other".into()]).len(), 1);
}
