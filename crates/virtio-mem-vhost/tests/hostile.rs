//! VMMs that mean harm: the backend lives, and serves the next one.

#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/vmm.rs"]
mod vmm;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use pagefold_virtio_mem_device::{Memfd, Pages, Settings};
use pagefold_virtio_mem_spec::{Request, RequestType, Response, ResponseType};
use pagefold_virtio_mem_vhost::{Backend, Server, Socket, Until, outlive_cut_memory};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm::{MIB, Vmm, WANTED, memory, table, until};

const ADDR: u64 = 1 << 32;
const SIZE: u64 = 64 * MIB;

/// Runs `harm` with a backend, its socket and its file; afterwards an honest VMM is served.
fn served(harm: impl FnOnce(&std::path::Path, &File, &dyn Fn(&str) -> bool)) {
    let memfd = Memfd::new(SIZE, Pages::Normal).unwrap();
    let file = memfd.file().try_clone().unwrap();
    let settings = Settings {
        block_size: Some(2 * MIB),
        guest_block_size: 4 * MIB,
        requested_size: 16 * MIB,
        resize_without_driver: true,
        ..Settings::new(ADDR, SIZE)
    };
    let lines = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&lines);
    let tell = move |event: pagefold_virtio_mem_vhost::Event| log.lock().unwrap().push(event.to_string());
    let backend = Backend::new(settings, memfd, None, tell).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let mut server = Server::new(backend, Socket::new(&path).unwrap()).unwrap();
    let stop = server.stopper();
    let server = thread::spawn(move || server.run(Until::Stopped));
    let said = |words: &str| lines.lock().unwrap().iter().any(|line: &String| line.contains(words));
    harm(&path, &file, &said);
    until("it is gone", || said("the VMM is gone") || said("the connection was ended"));
    let mut vmm = Vmm::connect(&path, memory(&file, ADDR, SIZE));
    vmm.start(WANTED).unwrap();
    let ack = Response::new(ResponseType::Ack);
    assert_eq!(vmm.ask(&Request::new(RequestType::UnplugAll, 0, 0)), ack);
    assert_eq!(vmm.ask(&Request::new(RequestType::Plug, ADDR, 8)), ack);
    stop.stop();
    server.join().unwrap().unwrap();
}

#[test]
fn a_file_that_is_smaller_than_its_memory_is_refused_before_it_is_mapped() {
    served(|path, file, said| {
        let mut vmm = Vmm::connect(path, memory(file, ADDR, SIZE));
        let mut regions = table(&vmm.memory);
        regions[1].memory_size += 4096;
        assert!(vmm.frontend.set_mem_table(&regions).is_err());
        until("it says so", || said("bytes from 0x0 of a file that has 0x4000000"));
        drop(vmm.frontend.get_queue_num());
    });
}

#[test]
fn memory_that_is_cut_short_while_it_is_mapped_is_lost_to_its_vmm_only() {
    outlive_cut_memory().unwrap();
    served(|path, file, said| {
        let mut vmm = Vmm::connect(path, memory(file, ADDR, SIZE));
        vmm.start(WANTED).unwrap();
        vmm.make_available(&Request::new(RequestType::Plug, ADDR, 1));
        let ram = vmm.memory.find_region(GuestAddress(0)).unwrap().file_offset().unwrap();
        ram.file().set_len(0).unwrap();
        vmm.kick.write(1).unwrap();
        until("it says so", || said("memory that the VMM had given is gone"));
    });
}

#[test]
fn memory_that_the_host_has_none_for_is_lost_to_its_vmm_only() {
    outlive_cut_memory().unwrap();
    served(|path, file, said| {
        let free = std::fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
        let huge = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let (Ok(huge), "0") = (memfd_create("huge", huge), free.trim()) else {
            println!("left out: huge pages that the host does not have: it has some, or cannot have any");
            return drop(UnixStream::connect(path).unwrap());
        };
        // It can be mapped, but not touched.
        let huge = File::from(huge);
        huge.set_len(vmm::RAM).unwrap();
        let mut vmm = Vmm::connect(path, memory(file, ADDR, SIZE));
        let mut regions = table(&vmm.memory);
        regions[0].mmap_handle = huge.as_raw_fd();
        vmm.frontend.set_features(WANTED | 1 << 30).unwrap();
        vmm.frontend.set_mem_table(&regions).unwrap();
        vmm.start_ring(0).unwrap();
        until("it says so", || said("memory that the VMM had given is gone"));
    });
}

#[test]
fn answers_that_nobody_reads_keep_nobody_from_the_next_vmm() {
    served(|path, _, _| {
        let mut stream = UnixStream::connect(path).unwrap();
        // GET_FEATURES, over and over, until the backend no longer takes any: all on the way is full.
        let message: Vec<u8> = [1u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        while stream.write_all(&message).is_ok() {}
    });
}

#[test]
fn a_region_that_is_mapped_from_elsewhere_in_the_file_is_no_region() {
    let shifted = |file: &File, parts: &[(u64, u64, u64)]| {
        let ram = File::from(memfd_create("ram", MemfdFlags::CLOEXEC).unwrap());
        ram.set_len(vmm::RAM).unwrap();
        let mut all = vec![(GuestAddress(0), vmm::RAM as usize, Some(FileOffset::new(ram, 0)))];
        for &(addr, len, offset) in parts {
            let file = FileOffset::new(file.try_clone().unwrap(), offset);
            all.push((GuestAddress(addr), len as usize, Some(file)));
        }
        GuestMemoryMmap::<()>::from_ranges_with_files(all).unwrap()
    };
    let half = SIZE / 2;
    for (parts, why) in [
        // Longer than the region's, and from its middle.
        (&[(ADDR, half, half), (ADDR + half, half, 0)][..], "at 0x2000000 of the file"),
        (&[(ADDR, half, 0), (ADDR + half, half, 0)], "at 0x0 of the file"),
        (&[(ADDR - half, half, 0), (ADDR, half, half)], "has no memory of"),
    ] {
        served(|path, file, said| {
            let mut vmm = Vmm::connect(path, shifted(file, parts));
            vmm.start(WANTED).unwrap();
            vmm.make_available(&Request::new(RequestType::Plug, ADDR, 1));
            vmm.kick.write(1).unwrap();
            until("it says so", || said(why));
            assert!(!said("a driver is ready"));
        });
    }
    // In parts, but right: it is served.
    served(|path, file, _| {
        let mut vmm = Vmm::connect(path, shifted(file, &[(ADDR, half, 0), (ADDR + half, half, half)]));
        vmm.start(WANTED).unwrap();
        let ack = Response::new(ResponseType::Ack);
        assert_eq!(vmm.ask(&Request::new(RequestType::Plug, ADDR, 1)), ack);
    });
}

#[test]
fn memory_in_more_parts_than_there_can_be_is_refused() {
    served(|path, file, said| {
        let mut vmm = Vmm::connect(path, memory(file, ADDR, SIZE));
        let all = File::from(memfd_create("parts", MemfdFlags::CLOEXEC).unwrap());
        all.set_len(4096).unwrap();
        let parts = (0..600).take_while(|part| {
            let region = vhost::VhostUserMemoryRegionInfo {
                guest_phys_addr: part << 20,
                memory_size: 4096,
                userspace_addr: (1 << 40) + (part << 20),
                mmap_offset: 0,
                mmap_handle: all.as_raw_fd(),
            };
            vmm.frontend.add_mem_region(&region).is_ok()
        });
        assert_eq!(parts.count(), 509);
        until("it says so", || said("in more than 509 regions"));
    });
}

#[test]
fn a_doorbell_that_never_comes_through_keeps_nobody_from_the_next_vmm() {
    served(|path, file, _| {
        let mut vmm = Vmm::connect(path, memory(file, ADDR, SIZE));
        vmm.start(WANTED).unwrap();
        // A byte of eight: a thread that reads a doorbell from it waits for ever.
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, &[1]).unwrap();
        std::mem::forget(writer);
        // SAFETY: the descriptor is open, and given away.
        let kick = unsafe {
            <vmm_sys_util::eventfd::EventFd as std::os::fd::FromRawFd>::from_raw_fd(
                std::os::fd::IntoRawFd::into_raw_fd(reader),
            )
        };
        vmm.frontend.set_vring_enable(0, false).unwrap();
        vmm.frontend.set_vring_kick(0, &kick).unwrap();
        // The ring's thread waits from here on, with the ring; so may the answer to this.
        let _ = vmm.frontend.set_vring_enable(0, true);
    });
}

#[test]
fn no_messages_end_the_backend() {
    // Splitmix64: the same bytes each time.
    let mut state = 17u64;
    let mut random = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut said = 0;
    for _ in 0..400 {
        let bytes: Vec<u8> = (0..8 + random() % 24).flat_map(|_| random().to_le_bytes()).collect();
        said += hostile::run(&bytes);
    }
    assert!(said > 2000, "only {said} messages were said");
}
