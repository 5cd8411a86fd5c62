use super::*;

/// A frame's header, with a mask if `masked`.
fn header(first: u8, masked: bool, payload: u64) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut header = match (u8::try_from(payload), u16::try_from(payload)) {
        (Ok(short @ ..=125), _) => vec![first, mask | short],
        (_, Ok(medium)) => [&[first, mask | 0x7e][..], &medium.to_be_bytes()].concat(),
        _ => [&[first, mask | 0x7f][..], &payload.to_be_bytes()].concat(),
    };
    if masked {
        header.extend([1, 2, 3, 4]);
    }
    header
}

#[test]
fn a_header_passes_once_it_is_complete_and_not_a_byte_before() {
    for payload in [0, 1, 125, 126, 65_535, 65_536, (1 << 63) - 1] {
        for masked in [false, true] {
            let header = header(0x82, masked, payload);
            for cut in 1..header.len() {
                let mut follower = Follower::new(0);
                assert_eq!(follower.follow(&header[..cut]), (0, None), "{cut} of {header:?}");
                assert_eq!(follower.rest(), 0);
            }
            let mut follower = Follower::new(0);
            assert_eq!(follower.follow(&header), (header.len(), None));
            assert_eq!(follower.rest(), payload);
        }
    }
}

#[test]
fn payload_is_never_taken_for_a_header() {
    let mut follower = Follower::new(0);
    let close = header(0x88, false, 0);
    let frame = [header(0x82, false, 2), close.clone(), header(0x81, true, 0)].concat();
    assert_eq!(follower.follow(&frame), (frame.len(), None));
    assert!(!follower.closes(), "a payload that looks like a close frame");
    assert_eq!(follower.follow(&close), (2, None));
    assert!(follower.closes());
}

#[test]
fn masks_reserved_bits_unknown_opcodes_and_long_forms_of_short_lengths_are_for_the_two_ends_to_judge() {
    for first in 0..=u8::MAX {
        let control = first & 0x08 != 0;
        if control && first & 0x80 == 0 {
            continue;
        }
        for frame in [
            header(first, false, 3),
            header(first, true, 3),
            vec![first, 126, 0, 3],
            vec![first, 127, 0, 0, 0, 0, 0, 0, 0, 3],
        ] {
            let frame = [&frame[..], b"abc"].concat();
            assert_eq!(Follower::new(3).follow(&frame), (frame.len(), None), "{frame:?}");
        }
    }
}

#[test]
fn what_the_two_ends_may_read_in_two_ways_does_not_pass() {
    for frame in [
        header(0x89, false, 126),
        header(0x88, true, 1 << 20),
        header(0x09, false, 1),
        header(0x08, false, 0),
        header(0x82, false, 1 << 63),
        header(0x02, true, u64::MAX),
        header(0x8b, false, u64::MAX),
    ] {
        let bytes = [header(0x82, false, 1), vec![0], frame.clone(), vec![0; 300]].concat();
        let mut follower = Follower::new(0);
        assert_eq!(follower.follow(&bytes), (3, Some(Fault::Malformed)), "{frame:?}");
        // Nor does it on a second look, until it is forgiven.
        assert_eq!(follower.follow(&bytes[3..]), (0, Some(Fault::Malformed)));
        follower.forgive();
        assert!(follower.follow(&bytes[3..]).0 >= frame.len());
    }
}

#[test]
fn a_message_is_all_its_fragments_and_its_pings_are_not_of_it() {
    let fragment = |first, length: u8| [header(first, true, length.into()), vec![0; length.into()]].concat();
    let ping = fragment(0x89, 125);
    let message = [
        fragment(0x01, 4),
        ping.clone(),
        fragment(0x00, 4),
        ping,
        fragment(0x80, 2),
    ]
    .concat();
    let mut follower = Follower::new(10);
    // Each message has the whole limit.
    for _ in 0..3 {
        assert_eq!(follower.follow(&message), (message.len(), None));
    }
    let last = fragment(0x80, 2);
    let (passed, fault) = Follower::new(9).follow(&message);
    assert_eq!((passed, fault), (message.len() - last.len(), Some(Fault::TooBig)));
    assert_eq!(Follower::new(0).follow(&message), (message.len(), None));
}

#[test]
fn a_message_in_pieces_that_all_say_they_begin_one_is_one_message() {
    let piece = [header(0x02, true, 6), vec![0; 6]].concat();
    let mut follower = Follower::new(10);
    assert_eq!(follower.follow(&piece), (piece.len(), None));
    assert_eq!(follower.follow(&piece), (0, Some(Fault::TooBig)));

    // Sums that don't fit a number are too long as well.
    let huge = header(0x02, false, (1 << 63) - 1);
    let mut follower = Follower {
        message: u64::MAX - 1,
        ..Follower::new(u64::MAX - 1)
    };
    assert_eq!(follower.follow(&huge), (0, Some(Fault::TooBig)));
}
