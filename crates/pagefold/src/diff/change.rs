//! Kinds of change, and their colours.

use pagefold_machine::PageState;

use super::compare::{Change, is_regrouped};
use crate::picture::palette::{
    BLACK, BLUE, Category, Color, GREEN, ORANGE, PURPLE, Palette, VERMILION, WHITE, YELLOW,
};

/// Categories in the order of [`Kind`].
pub static PALETTE: Palette = Palette {
    categories: &[
        Category::quiet("unchanged", '.', Color(0xe6, 0xea, 0xee), Color(0x2b, 0x34, 0x3d)),
        Category::new("taken: free before", 'T', BLUE),
        Category::new("freed", 'F', GREEN),
        Category::new("another use", 'U', ORANGE),
        Category::new("same use, other folios", 'G', PURPLE),
        Category::new("plugged: not there before", 'P', YELLOW),
        Category::new("unplugged: no longer there", 'X', VERMILION),
        Category::quiet("newly poisoned", '!', BLACK, WHITE),
    ],
    quiet: 1,
    alarm: Some(Kind::Poisoned as usize),
    rule: "A cell shows most of what changed in it",
    steps: [1, 10, 50],
};

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Unchanged,
    Taken,
    Freed,
    OtherUse,
    Regrouped,
    Plugged,
    Unplugged,
    Poisoned,
}

/// The category of a change.
pub fn category(change: &Change) -> usize {
    kind(change) as usize
}

fn kind(change: &Change) -> Kind {
    let (from, to) = change.states();
    let is_free = |state: Option<PageState>| state.is_some_and(PageState::is_free);
    let is_away =
        |state: Option<PageState>| matches!(state, None | Some(PageState::Offline | PageState::NoPage));
    match (from, to) {
        _ if is_regrouped(change) => Kind::Regrouped,
        _ if from == to => Kind::Unchanged,
        (_, Some(PageState::HwPoison)) => Kind::Poisoned,
        // Nothing became nothing of another kind; one sort of free page another.
        _ if is_away(from) && is_away(to) => Kind::OtherUse,
        _ if is_free(from) && is_free(to) => Kind::Unchanged,
        _ if is_away(from) => Kind::Plugged,
        _ if is_away(to) => Kind::Unplugged,
        _ if is_free(from) => Kind::Taken,
        _ if is_free(to) => Kind::Freed,
        _ => Kind::OtherUse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_states_has_a_kind() {
        let change = |from: Option<PageState>, to: Option<PageState>| {
            kind(&Change {
                start: 0,
                pages: 1,
                from: from.map(|state| (state, 0)),
                to: to.map(|state| (state, 0)),
            })
        };
        use PageState::{Anon, Deferred, File, Free, HwPoison, NoPage, Offline, Slab};
        for (from, to, expected) in [
            (Some(Free), Some(Anon), Kind::Taken),
            (Some(Deferred), Some(Slab), Kind::Taken),
            (Some(Deferred), Some(Free), Kind::Unchanged),
            (Some(File), Some(Free), Kind::Freed),
            (Some(File), Some(Anon), Kind::OtherUse),
            (Some(Offline), Some(Free), Kind::Plugged),
            (None, Some(Anon), Kind::Plugged),
            (Some(Anon), None, Kind::Unplugged),
            (Some(Free), Some(Offline), Kind::Unplugged),
            (None, Some(NoPage), Kind::OtherUse),
            (Some(Anon), Some(HwPoison), Kind::Poisoned),
            (Some(HwPoison), Some(Free), Kind::Freed),
            (None, Some(HwPoison), Kind::Poisoned),
        ] {
            assert_eq!(change(from, to), expected, "{from:?} {to:?}");
        }
        for state in PageState::ALL.into_iter().map(Some).chain([None]) {
            assert_eq!(change(state, state), Kind::Unchanged);
        }
    }

    #[test]
    fn the_palette_has_the_kinds_in_order() {
        assert_eq!(PALETTE.categories.len(), Kind::Poisoned as usize + 1);
        assert_eq!(PALETTE.categories[Kind::Freed as usize].name, "freed");
        assert_eq!(PALETTE.categories[Kind::Plugged as usize].letter, 'P');
    }
}
