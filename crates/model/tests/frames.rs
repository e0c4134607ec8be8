//! The frame allocator: no page twice, none lost, none refused that is free.

mod common;

use common::{NoMemory, beside, explore, frame_allocator, order};
use loom::sync::Arc;
use pagefold_model::protocol::Fold;
use pagefold_model::{AllocError, FrameAllocator, Order, Pfn};

fn frames() -> Arc<FrameAllocator<NoMemory<Fold>>> {
    let mut frames = frame_allocator();
    frames.online(0..8).unwrap();
    Arc::new(frames)
}

fn pages(pfn: Pfn, order: Order) -> impl Iterator<Item = u64> {
    pfn.0..pfn.0 + order.pages()
}

/// Two threads take a block each at the same time, and give it back.
fn two_blocks(first: u32, second: u32) {
    let frames = frames();
    let other = beside(&frames, move |frames| frames.alloc(order(second), 0).unwrap());
    let mine = frames.alloc(order(first), 0).unwrap();
    let theirs = other.join().unwrap();
    assert!(pages(mine, order(first)).all(|page| pages(theirs, order(second)).all(|other| page != other)));
    frames.free(mine, order(first)).unwrap();
    frames.free(theirs, order(second)).unwrap();
    assert_eq!(frames.free_pages(), 8);
    // It has come together again.
    assert!(frames.alloc(order(3), 0).is_ok());
}

#[test]
fn two_pages() {
    explore(3, || two_blocks(0, 0));
}

#[test]
fn a_page_and_an_area() {
    explore(3, || two_blocks(0, 2));
}

#[test]
fn two_areas() {
    explore(3, || two_blocks(2, 2));
}

#[test]
fn a_map_page_and_a_page() {
    explore(3, || two_blocks(1, 0));
}

#[test]
fn the_last_page_of_an_area_is_freed_while_another_is_taken() {
    explore(3, || {
        let frames = frames();
        let last = frames.alloc(Order::ZERO, 0).unwrap();
        let other = beside(&frames, move |frames| frames.free(last, Order::ZERO).unwrap());
        let mine = frames.alloc(Order::ZERO, 0).unwrap();
        other.join().unwrap();
        frames.free(mine, Order::ZERO).unwrap();
        assert_eq!(frames.free_pages(), 8);
        assert!(frames.alloc(order(3), 0).is_ok());
    });
}

#[test]
fn the_last_free_block_goes_to_one_of_two() {
    explore(2, || {
        let frames = frames();
        let held = frames.alloc(order(2), 0).unwrap();
        let other = beside(&frames, |frames| frames.alloc(order(2), 0));
        let mine = frames.alloc(order(2), 0);
        let theirs = other.join().unwrap();
        match (mine, theirs) {
            (Ok(pfn), Err(AllocError::NoBlock)) | (Err(AllocError::NoBlock), Ok(pfn)) => {
                assert_ne!(pfn, held);
            }
            both => panic!("{both:?}"),
        }
    });
}

#[test]
fn nobody_gives_back_what_is_free() {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.check(|| {
        let frames = frames();
        for bits in 0..=3 {
            assert!(frames.free(Pfn(0), order(bits)).is_err(), "order {bits}");
        }
        assert!(frames.free(Pfn(1 << 40), Order::ZERO).is_err());
        assert!(frames.free(Pfn(1), order(1)).is_err());
        assert_eq!(frames.free_pages(), 8);
    });
}

/// Each of two owners gives a part of one block back. One of them breaks the block up; the other one's pages stay free.
#[test]
fn parts_of_a_block_are_freed_at_the_same_time() {
    explore(3, || {
        let frames = frames();
        let block = frames.alloc(order(2), 0).unwrap();
        let other = beside(&frames, move |frames| frames.free(block.plus(2), order(1)).unwrap());
        frames.free(block, order(1)).unwrap();
        other.join().unwrap();
        assert_eq!(frames.free_pages(), 8);
        assert!(frames.alloc(order(3), 0).is_ok());
    });
}
