//! How a guest ends that does not end in order.

use crate::Pagefold;
use crate::course::Came;

/// The guest traps or notices; what it says of it.
pub fn ends(pagefold: &Pagefold, arguments: &str) -> (String, String) {
    let Came { code, json, stderr } = pagefold.boot(arguments, "");
    assert_eq!(code, 1, "{arguments}: {stderr} {}", json["ending"]["how"]);
    let text = |key: &str| json["ending"][key].as_str().unwrap_or_default().to_owned();
    let broken = json["broken"].to_string();
    (text("how"), format!("{}{broken}", text("dump")))
}

pub fn breaks(pagefold: &Pagefold) {
    for (what, how, words) in [
        ("write", "stray-write", &["pfn 0x", "class Absent", "breaks::now"][..]),
        ("stack", "stack-overflow", &["below the stack", "breaks::deeper"]),
        ("double-fault", "double-fault", &["a double fault", "breaks::now"]),
        ("hang --watchdog 3", "hang", &["processor 1 for 3 s; processor 0 noticed", "breaks::may_hang"]),
    ] {
        let arguments = format!("--memory 128M --cpus 2 --device 1G --resize 0 --break {what}");
        let Came { code, json, stderr } = pagefold.boot(&arguments, "");
        assert_eq!((code, json["ending"]["how"].as_str()), (1, Some(how)), "{what}: {stderr}");
        let dump = json["ending"]["dump"].as_str().unwrap();
        for word in words {
            assert!(dump.contains(word), "{what}: no '{word}' in\n{dump}");
        }
        // Every processor says how it stood.
        assert!(dump.contains("processor 0  rip") && dump.contains("processor 1  rip"), "{dump}");
    }
}

/// Machines that are booted until one notices. When that happens is luck: a processor must use what another has folded while it
/// remembers it.
const BOOTS: usize = 8;

/// What real hardware does not forgive, and this one does not either: TLBs keep what they have. Owners see it, on all
/// processors; without them one alone makes descriptors and folds them.
pub fn flushes_that_are_missing_are_seen(pagefold: &Pagefold) {
    for what in ["no-flush", "local-flush"] {
        let arguments = format!(
            "--memory 128M --cpus 4 --walkers 8 --owners 4 --device 1G --resize 256M --cycle 8000 --break {what}"
        );
        let is_noticed = (0..BOOTS).any(|_| {
            let (how, dump) = ends(pagefold, &arguments);
            println!("{what}: {how}: {}", dump.lines().next().unwrap_or_default());
            assert!(how != "killed", "{what}: {dump}");
            how != "stopped" || dump.contains("violation") || dump.contains("frames")
        });
        assert!(is_noticed, "{what}: nothing was noticed in {BOOTS} machines");
    }
}

pub fn survivors(pagefold: &Pagefold) {
    // Without a watchdog nobody notices a hang, but it may not pass for a demonstration.
    let Came { code, json, .. } =
        pagefold.boot("--memory 128M --cpus 2 --device 1G --resize 0 --break write --seconds 0", "");
    assert_eq!((code, json["ending"]["how"].as_str()), (1, Some("stopped")));
    assert_eq!(json["broken"][0], "--break: the guest has survived Write");
}

pub fn usage(pagefold: &Pagefold) {
    let Came { code, stderr, .. } = pagefold.boot("--memory 128M --cpus 1 --append nonsense", "");
    assert_eq!((code, stderr.lines().count()), (2, 1), "{stderr}");
    assert!(stderr.contains("'nonsense' on the kernel's command line: expected "), "{stderr}");
}

pub fn too_small(pagefold: &Pagefold) {
    // Told before anything is started.
    let Came { code, stderr, .. } = pagefold.boot("--memory 6M --cpus 1", "");
    assert_eq!((code, stderr.lines().count()), (2, 1), "{stderr}");
    assert!(stderr.contains("are too little for one CPU: give --memory "), "{stderr}");
}
