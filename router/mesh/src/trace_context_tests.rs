use super::*;

const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn parse(text: &str) -> Option<TraceParent> {
    TraceParent::parse(text.as_bytes())
}

#[test]
fn a_traceparent_survives_the_wire() {
    let parent = parse(GOOD).unwrap();
    assert_eq!(parent.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(parent.span.to_string(), "b7ad6b7169203331");
    assert!(parent.sampled);
    assert_eq!(parent.to_header(), GOOD);
    let child = parent.child(false);
    assert_eq!((child.trace, child.sampled), (parent.trace, false));
    assert_ne!(child.span, parent.span);
    for made in [child, TraceParent::root(true), TraceParent::root(false)] {
        assert_eq!(TraceParent::parse(made.to_header().as_bytes()), Some(made));
    }
}

#[test]
fn of_later_versions_and_flags_what_is_known_counts() {
    for (text, sampled) in [
        (GOOD.replace("-01", "-00"), false),
        (GOOD.replace("-01", "-03"), true),
        (GOOD.replace("-01", "-fe"), false),
        (GOOD.replace("00-", "cc-"), true),
        (format!("{}-what-is-this", GOOD.replace("00-", "01-")), true),
    ] {
        assert_eq!(parse(&text).map(|parent| parent.sampled), Some(sampled), "{text}");
    }
}

#[test]
fn what_is_no_traceparent_names_no_span() {
    let later = GOOD.replace("00-", "01-");
    for bad in [
        String::new(),
        "-".repeat(LENGTH),
        GOOD.to_uppercase(),
        GOOD.replace("00-0", "ff-0"),
        GOOD.replace("00-0", "0-00"),
        GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
        GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
        GOOD.replace("0af7", "0ag7"),
        GOOD.replace("-b7ad", "_b7ad"),
        GOOD.replace("-01", "-1"),
        GOOD.replace("-01", "-+1"),
        format!("{GOOD}-01"),
        format!("{GOOD} "),
        format!(" {GOOD}"),
        format!("{later}1"),
        format!("{later},{later}"),
    ] {
        assert_eq!(parse(&bad), None, "{bad}");
    }
}

#[test]
fn two_parents_are_none() {
    let mut headers = HeaderMap::new();
    assert_eq!(TraceParent::of(&headers), None);
    headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
    assert_eq!(TraceParent::of(&headers), parse(GOOD));
    headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
    assert_eq!(TraceParent::of(&headers), None);
}

#[test]
fn a_gates_span_is_spelled_in_one_way() {
    let span = parse(GOOD).unwrap().span;
    for took in [0, 1, 1_500_000, u64::MAX] {
        let told = GateSpan {
            span,
            took: Duration::from_micros(took),
        };
        assert_eq!(GateSpan::from_header(&told.to_header()), Some(told));
    }
    for bad in [
        "",
        "v1",
        "v1;;",
        "v1;b7ad6b7169203331",
        "v1;b7ad6b7169203331;",
        "v1;b7ad6b7169203331;-1",
        "v1;b7ad6b7169203331;+1",
        "v1;b7ad6b7169203331;01",
        "v1;b7ad6b7169203331;1;",
        "v1;b7ad6b7169203331;1;2",
        "v1;B7AD6B7169203331;1",
        "v1;7ad6b7169203331;1",
        "v1;0000000000000000;1",
        "v1;0b7ad6b7169203331;1",
        "v1;b7ad6b7169203331;18446744073709551616",
        "v2;b7ad6b7169203331;1",
        " v1;b7ad6b7169203331;1",
    ] {
        assert_eq!(GateSpan::from_header(&HeaderValue::from_static(bad)), None, "{bad}");
    }
    let long = HeaderValue::try_from(format!("v1;{};1", "b".repeat(9000))).unwrap();
    assert_eq!(GateSpan::from_header(&long), None);
}
