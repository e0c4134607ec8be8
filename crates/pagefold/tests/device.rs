//! `pagefold device`, run as it is, with a VMM that this test plays.

#[path = "device/running.rs"]
mod running;
#[path = "../../virtio-mem-vhost/tests/common/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};

use pagefold_virtio_mem_spec::{Request, RequestType};
use running::{ADDR, BLOCK, Device, SIZE, ack, dir, pagefold, plug, refused};
use rustix::process::Signal;
use vm_memory::{Bytes, GuestAddress};
use vmm::{MIB, Vmm, WANTED, memory, until};

#[test]
fn sizes_come_from_stdin_and_the_control_socket_and_the_log_says_what_the_guest_asked() {
    let mut device = Device::new(&dir(), &[]);
    let mut vmm = device.vmm();
    vmm.start(WANTED).unwrap();
    device.type_line("resize 64M");
    vmm.config_changed();
    assert_eq!(vmm.ask(&plug(0, 32)), ack());
    assert_eq!(device.tell(&["resize", "128M"]), (Some(0), "requested 134217728\n".into()));
    vmm.config_changed();
    assert_eq!(vmm.ask(&plug(40, 16)), ack());
    let status = device.status();
    assert_eq!(status["plugged_size"], 96 * MIB);
    assert_eq!(status["requested_size"], 128 * MIB);
    assert_eq!(status["plugged"], serde_json::json!([[ADDR, 64 * MIB], [ADDR + 40 * BLOCK, 32 * MIB]]));
    assert_eq!(status["driver_features"], WANTED);
    let (_, text) = device.tell(&["status"]);
    assert!(text.contains("plugged    96.0 MiB in blocks of 2.00 MiB\n"), "{text}");
    let (_, stats) = device.tell(&["stats"]);
    for line in [
        "virtio_mem_plugged_bytes 100663296\n",
        "virtio_mem_resizes_total 2\n",
        "virtio_mem_requests_total{request=\"plug\",answer=\"ack\"} 2\n",
        "virtio_mem_request_bytes_total{request=\"plug\"} 100663296\n",
        "virtio_mem_request_seconds_bucket{le=\"+Inf\",request=\"plug\"} 2\n",
        "virtio_mem_request_seconds_count{request=\"plug\"} 2\n",
        "# EOF\n",
    ] {
        assert!(stats.contains(line), "{line}{stats}");
    }
    assert!(device.said("PLUG 0x100000000 +32 blocks: ACK"));
    // What is wrong is one line, and changes nothing.
    for (words, why) in [
        (&["resize", "1K"][..], "not a multiple of the device block"),
        (&["resize", "1T"], "more than the device's region"),
        (&["resize", "many"], "many"),
        (&["dance"], "there are: resize SIZE"),
    ] {
        let (code, text) = device.tell(words);
        assert!(code == Some(1) && text.contains(why) && text.lines().count() == 1, "{code:?} {text}");
    }
    device.signal(Signal::TERM);
    assert_eq!(device.code(), Some(0));
    assert!(!device.path("vm.sock").exists() && !device.path("vm.ctl").exists());
}

/// Whether this process ignores a signal, and so does what it starts.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal.as_raw() - 1) & 1 != 0
}

#[test]
fn it_ends_in_order_when_it_is_told_to_and_when_its_vmm_goes() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        if is_ignored(signal) {
            // As under nohup: what is started here ignores it too, and is meant to.
            println!("left out: {signal:?} is ignored here");
            continue;
        }
        let mut device = Device::new(&dir(), &[]);
        device.signal(signal);
        assert_eq!(device.code(), Some(0), "{signal:?}");
    }
    let mut device = Device::new(&dir(), &[]);
    let mut vmm = device.vmm();
    vmm.start(WANTED).unwrap();
    drop(vmm);
    assert_eq!(device.code(), Some(0));
    let mut device = Device::new(&dir(), &["--stay"]);
    drop(device.vmm());
    until("the VMM is gone", || device.said("the VMM is gone"));
    device.type_line("quit");
    assert_eq!(device.code(), Some(0));
}

#[test]
fn a_device_that_was_ended_goes_on_where_it_was() {
    let dir = dir();
    // The link stays, and what it leads to is written.
    std::os::unix::fs::symlink("kept.state", dir.path().join("vm.state")).unwrap();
    let mut device = Device::new(&dir, &["--state", "vm.state"]);
    device.type_line("resize 64M");
    let mut vmm = device.vmm();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(2, 3)), ack());
    vmm.memory.write_obj(42u64, GuestAddress(ADDR + 2 * BLOCK)).unwrap();
    device.signal(Signal::TERM);
    assert_eq!(device.code(), Some(0));
    assert!(dir.path().join("vm.state").is_symlink() && dir.path().join("kept.state").is_file());
    let mut device = Device::new(&dir, &["--state", "vm.state"]);
    let status = device.status();
    assert_eq!(
        (&status["plugged_size"], &status["requested_size"]),
        (&(3 * BLOCK).into(), &(64 * MIB).into())
    );
    // The VMM has kept its guest, and its ring.
    let mut vmm = device.vmm();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.memory.read_obj::<u64>(GuestAddress(ADDR + 2 * BLOCK)).unwrap(), 42);
    assert_eq!(vmm.ask(&Request::new(RequestType::Unplug, ADDR + 2 * BLOCK, 3)), ack());
    assert_eq!(device.status()["resident"], 0);
    drop(vmm);
    assert_eq!(device.code(), Some(0));
}

#[test]
fn a_memfd_is_found_where_it_says() {
    let device = Device::new(&dir(), &["--memory", "memfd", "--requested", "8M"]);
    let said = device.said.lock().unwrap().clone();
    let path = said.iter().find_map(|line| line.split("memory is ").nth(1)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut vmm = Vmm::connect(&device.path("vm.sock"), memory(&file, ADDR, SIZE));
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(0, 4)), ack());
}

#[test]
fn a_vmm_that_comes_back_finds_the_device_as_it_was_and_a_second_one_is_sent_away() {
    let device = Device::new(&dir(), &["--stay", "--requested", "64M", "--quiet"]);
    let mut vmm = device.vmm();
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&plug(0, 1)), ack());
    drop(UnixStream::connect(device.path("vm.sock")).unwrap());
    until("it is refused", || device.said("a second VMM was refused"));
    assert_eq!(vmm.ask(&plug(1, 1)), ack());
    drop(vmm);
    until("the VMM is gone", || device.said("the VMM is gone"));
    let mut vmm = device.vmm();
    assert_eq!(vmm.config().plugged_size.get(), 2 * BLOCK);
    vmm.start(WANTED).unwrap();
    assert_eq!(vmm.ask(&Request::new(RequestType::UnplugAll, 0, 0)), ack());
    assert!(!device.said("PLUG"), "it was told to be quiet");
}

#[test]
fn a_vmm_that_talks_nonsense_is_sent_away_with_a_line_and_an_exit_code() {
    let mut device = Device::new(&dir(), &[]);
    let mut vmm = UnixStream::connect(device.path("vm.sock")).unwrap();
    vmm.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(device.code(), Some(1));
    let said = device.said.lock().unwrap();
    assert!(said.last().unwrap().starts_with("pagefold: the connection was ended: message "), "{said:?}");
}

#[test]
fn what_does_not_fit_is_one_line_and_an_exit_code() {
    let dir = dir();
    let here = dir.path();
    fs::write(here.join("short"), [0; 4096]).unwrap();
    fs::write(here.join("nonsense"), "{}").unwrap();
    let filled = File::create(here.join("filled")).unwrap();
    filled.set_len(SIZE).unwrap();
    std::os::unix::fs::FileExt::write_at(&filled, &[1; 4096], 0).unwrap();
    let listener = UnixListener::bind(here.join("taken")).unwrap();
    let with = |changes: &[(&str, &str)]| {
        let mut args = vec![
            ("--socket", "s"),
            ("--memory", "mem"),
            ("--region", "0x100000000"),
            ("--size", "256M"),
            ("--block", "2M"),
        ];
        for &(name, value) in changes {
            match args.iter_mut().find(|arg| arg.0 == name) {
                Some(arg) => arg.1 = value,
                None => args.push((name, value)),
            }
        }
        let args: Vec<&str> = args.into_iter().flat_map(|(name, value)| [name, value]).collect();
        refused(here, &args)
    };
    for (changes, why) in [
        (&[("--socket", "taken")][..], "taken is in use: another process listens on it"),
        (&[("--socket", "short")], "short exists and is not a socket"),
        (&[("--socket", "no/dir/s")], "cannot create socket no/dir/s"),
        (&[("--control", "taken")], "taken is in use"),
        (&[("--memory", "short")], "short has 4096 bytes, the region has 268435456"),
        (&[("--memory", "filled")], "holds 4096 bytes already"),
        (&[("--memory", ".")], "cannot open ."),
        (&[("--memory", "/dev/null")], "/dev/null is not a regular file"),
        (&[("--memory", "no/dir/mem")], "cannot open no/dir/mem"),
        (&[("--region", "0x100200000")], "address 0x100200000 is not a multiple of 0x8000000"),
        (&[("--region", "0x10000000000000")], "passes the end of 52 bits"),
        (&[("--size", "100M"), ("--memory", "other")], "size 0x6400000 is not a multiple"),
        (&[("--block", "3M")], "a device block of 3145728 bytes"),
        (&[("--requested", "1G")], "more than the device's region"),
        (&[("--state", "nonsense")], "nonsense is no device's state"),
        (&[("--state", "no/dir/state")], "there is no directory no/dir"),
    ] {
        let text = with(changes);
        assert!(text.contains(why), "{changes:?}: {text}");
    }
    let place = ["--socket", "s", "--memory", "memfd", "--region", "4G", "--size", "1G", "resize", "1G"];
    for args in [&place[..], &["status"]] {
        let output = pagefold().current_dir(here).args(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && text.contains("with --tell PATH"), "{text}");
    }
    drop(listener);
    // Nothing of it is left behind, and what was there stays.
    assert!(!here.join("s").exists() && here.join("short").exists());
    assert!(!here.join("mem").exists() && !here.join("other").exists(), "the next try may have another size");
    let device = Device::new(&dir, &[]);
    let text = with(&[("--memory", "vm.mem")]);
    assert!(text.contains("vm.mem is in use: another device has it"), "{text}");
    drop(device);
    let text = refused(here, &["--tell", "nobody", "status"]);
    assert!(text.contains("no device answers at nobody"), "{text}");
    // Something listens, and says nothing, or never ends.
    let mute = UnixListener::bind(here.join("mute")).unwrap();
    let text = refused(here, &["--tell", "mute", "status"]);
    assert!(text.contains("mute has not answered for 10 s"), "{text}");
    drop(mute);
    let endless = UnixListener::bind(here.join("endless")).unwrap();
    let talker = std::thread::spawn(move || {
        let (mut client, _) = endless.accept().unwrap();
        while client.write_all(&[b'x'; 4096]).is_ok() {}
    });
    let text = refused(here, &["--tell", "endless", "status"]);
    assert!(text.contains("its answer does not end"), "{text}");
    talker.join().unwrap();
}
