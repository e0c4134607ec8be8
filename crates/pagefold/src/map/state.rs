//! Physical memory by what its pages are used for.

use pagefold_machine::{Extent, PageState};
use pagefold_picture::Piece;
use pagefold_picture::palette::{
    BLACK, BLUE, Category, Color, GREEN, GREY, ORANGE, PURPLE, Palette, SKY, VERMILION, WHITE, YELLOW,
};

/// The states in the order of the palette: background first, else as [`PageState::ALL`] has them.
const STATES: [PageState; PageState::ALL.len()] = {
    let mut states = [PageState::Free; PageState::ALL.len()];
    let mut filled = 0;
    let mut background = true;
    loop {
        let mut at = 0;
        while at < PageState::ALL.len() {
            let state = PageState::ALL[at];
            if is_background(state) == background {
                states[filled] = state;
                filled += 1;
            }
            at += 1;
        }
        if !background {
            break states;
        }
        background = false;
    }
};

const CATEGORIES: [Category; STATES.len()] = {
    let mut categories = [const { of_state(PageState::Free) }; STATES.len()];
    let mut at = 0;
    while at < STATES.len() {
        categories[at] = of_state(STATES[at]);
        at += 1;
    }
    categories
};

/// Categories in the order of [`STATES`].
pub static PALETTE: Palette = Palette {
    categories: &CATEGORIES,
    quiet: 3,
    alarm: Some(11),
    rule: "A cell shows what most of its pages in use are",
    steps: [10, 33, 66],
};

/// Whether pages in that state stay in the background.
const fn is_background(state: PageState) -> bool {
    matches!(state, PageState::Free | PageState::Deferred | PageState::NoPage)
}

const fn of_state(state: PageState) -> Category {
    let (letter, light, dark) = match state {
        PageState::Free => ('.', Color(0xdf, 0xe5, 0xea), Color(0x2b, 0x34, 0x3d)),
        PageState::Deferred => (',', Color(0xc9, 0xd3, 0xdb), Color(0x3e, 0x4a, 0x55)),
        PageState::NoPage => ('-', Color(0xf4, 0xf4, 0xf4), Color(0x1c, 0x20, 0x24)),
        PageState::Anon => ('A', BLUE, BLUE),
        PageState::File => ('C', SKY, SKY),
        PageState::Slab => ('S', ORANGE, ORANGE),
        PageState::PageTable => ('T', VERMILION, VERMILION),
        PageState::Hugetlb => ('H', GREEN, GREEN),
        PageState::Kernel => ('K', PURPLE, PURPLE),
        PageState::Reserved => ('R', GREY, GREY),
        PageState::Offline => ('O', YELLOW, YELLOW),
        PageState::HwPoison => ('!', BLACK, WHITE),
    };
    Category::two_toned(state.name(), letter, light, dark)
}

/// The category of a state.
pub fn category(state: PageState) -> usize {
    STATES.iter().position(|&other| other == state).unwrap_or(0)
}

/// Visits all of a machine's memory by state.
pub fn pieces(covered: impl Iterator<Item = Extent>, visit: &mut dyn FnMut(Piece)) {
    for Extent { start, pages, state, .. } in covered {
        visit(Piece { start, pages, category: category(state) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_category() {
        for state in PageState::ALL {
            assert_eq!(PALETTE.categories[category(state)].name, state.name());
        }
    }

    #[test]
    fn what_is_quiet_comes_first_and_poison_is_the_alarm() {
        assert!(STATES.iter().enumerate().all(|(at, &state)| is_background(state) == (at < PALETTE.quiet)));
        assert_eq!(PALETTE.alarm, Some(category(PageState::HwPoison)));
    }
}
