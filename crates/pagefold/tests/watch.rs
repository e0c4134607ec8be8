//! `pagefold watch` on a pseudo-terminal: it comes, listens, and leaves the terminal as it was.

mod common;

use std::path::Path;
use std::process::Command;

use common::pty::{Bond, Session, resize};
use common::{binary, pagefold, roots};
use predicates::prelude::*;
use rustix::process::Signal;

const TAKEN: &str = "\x1b[?1049h";
const GIVEN_BACK: &str = "\x1b[?1049l";

/// Watches a fixture.
fn start(args: &[&str]) -> Session {
    with_root(&roots::root("host-hvo"), args, Bond::None)
}

fn with_root(root: &Path, args: &[&str], bond: Bond) -> Session {
    Session::start(Command::new(binary()).args(["watch", "--root"]).arg(root).args(args), bond)
}

/// It ends by itself, well, and everything is as it was.
fn ends(mut session: Session) {
    session.wait_for(GIVEN_BACK);
    assert!(session.child.wait().unwrap().success());
    assert!(!session.is_raw());
}

#[test]
fn it_shows_tabs_and_help_and_quits() {
    let mut session = start(&[]);
    session.wait_for(TAKEN);
    session.wait_for("Overview");
    session.wait_for("descriptors");
    assert!(session.is_raw());
    session.press("\t");
    session.wait_for("DMA32");
    session.press("?");
    session.wait_for("Keys");
    session.press("x");
    session.press("p");
    session.wait_for("paused");
    session.press("q");
    ends(session);
}

#[test]
fn it_goes_on_reading_and_follows_the_terminal_as_it_changes() {
    let mut session = start(&["--interval", "0.1"]);
    session.wait_for("every");
    resize(&session.terminal, 60, 12);
    session.signal(Signal::WINCH);
    // Drawn again, whole.
    session.wait_for("Overview");
    session.press("\x03");
    ends(session);
}

#[test]
fn signals_end_it_and_give_the_terminal_back() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let mut session = start(&[]);
        session.wait_for("descriptors");
        session.signal(signal);
        ends(session);
    }
}

#[test]
fn it_ends_when_its_terminal_goes_away() {
    for bond in [Bond::None, Bond::Controlling, Bond::Ignoring] {
        let mut session = with_root(&roots::root("host-hvo"), &[], bond);
        session.wait_for("descriptors");
        session.hang_up();
        let status = session.child.wait().unwrap();
        assert!(status.success(), "{bond:?}: {status:?}");
    }
}

#[test]
fn half_a_key_does_not_keep_it_from_signals() {
    let mut session = start(&[]);
    session.wait_for("descriptors");
    session.press("\x1b[");
    session.signal(Signal::TERM);
    ends(session);
}

#[test]
fn it_can_be_suspended_and_goes_on() {
    for by_key in [false, true] {
        let mut session = start(&[]);
        session.wait_for("descriptors");
        if by_key {
            session.press("\x1a");
        } else {
            session.signal(Signal::TSTP);
        }
        session.wait_for(GIVEN_BACK);
        session.wait_until_stopped();
        assert!(!session.is_raw());
        session.signal(Signal::CONT);
        session.wait_for(TAKEN);
        // Drawn again, whole.
        session.wait_for("descriptors");
        assert!(session.is_raw());
        session.press("q");
        ends(session);
    }
}

#[test]
fn what_cannot_be_read_is_said_before_the_terminal_is_taken() {
    let mut session = with_root(Path::new("/does/not/exist"), &[], Bond::None);
    session.wait_for("has no directory 'proc'");
    assert_eq!(session.child.wait().unwrap().code(), Some(1));
    assert!(!session.seen.contains(TAKEN) && !session.is_raw());
}

#[test]
fn without_a_terminal_it_says_what_to_use_instead() {
    let one_line = predicate::function(|text: &str| text.lines().count() == 1);
    pagefold()
        .arg("watch")
        .assert()
        .code(1)
        .stdout("")
        .stderr(predicate::str::contains("pagefold report --json").and(one_line));
    for interval in ["0", "-1", "x", "1e9"] {
        pagefold().args(["watch", &format!("--interval={interval}")]).assert().code(2);
    }
}
