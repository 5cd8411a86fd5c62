//! The committed seeds of `tests/fuzz`, through the properties that its targets assert.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

// The fuzz targets are a workspace of their own, as they need a C++ compiler; their properties do not.
#[path = "fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a library's root where the targets are built")]
mod properties;

use std::path::Path;

#[test]
fn every_seed_keeps_its_property_and_is_taken_or_refused_as_its_name_says() {
    for (target, property) in properties::TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let (mut accepted, mut refused) = (0, 0);
        for seed in std::fs::read_dir(&corpus).unwrap() {
            let path = seed.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let taken = std::panic::catch_unwind(|| property(&std::fs::read(&path).unwrap()));
            match (taken, name.split_once('-').unwrap_or_default().0) {
                (Ok(true), "accepted") => accepted += 1,
                (Ok(false), "refused") => refused += 1,
                (Ok(taken), _) => panic!("{target}/{name}: accepted: {taken}"),
                (Err(_), _) => panic!("{target}/{name}: its property doesn't hold, see above"),
            }
        }
        assert!(
            accepted > 0 && refused > 0,
            "{target}: {accepted} accepted, {refused} refused"
        );
    }
}
