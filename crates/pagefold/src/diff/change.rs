//! Kinds of change, and their colours.

use pagefold_machine::PageState;
use pagefold_picture::palette::{
    BLACK, BLUE, Category, Color, GREEN, ORANGE, PURPLE, Palette, VERMILION, WHITE, YELLOW,
};

use super::compare::{PageChange, is_regrouped};

/// Categories in the order of [`ChangeKind`].
pub static PALETTE: Palette = Palette {
    categories: &[
        Category::two_toned("unchanged", '.', Color(0xe6, 0xea, 0xee), Color(0x2b, 0x34, 0x3d)),
        Category::new("taken: free before", 'T', BLUE),
        Category::new("freed", 'F', GREEN),
        Category::new("another use", 'U', ORANGE),
        Category::new("same use, other folios", 'G', PURPLE),
        Category::new("plugged: not there before", 'P', YELLOW),
        Category::new("unplugged: no longer there", 'X', VERMILION),
        Category::two_toned("newly poisoned", '!', BLACK, WHITE),
    ],
    quiet: 1,
    alarm: Some(ChangeKind::Poisoned as usize),
    rule: "A cell shows most of what changed in it",
    steps: [1, 10, 50],
};

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
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
pub fn category(change: &PageChange) -> usize {
    kind(change) as usize
}

fn kind(change: &PageChange) -> ChangeKind {
    let (from, to) = change.states();
    let is_free = |state: Option<PageState>| state.is_some_and(PageState::is_free);
    let is_away =
        |state: Option<PageState>| matches!(state, None | Some(PageState::Offline | PageState::NoPage));
    match (from, to) {
        _ if is_regrouped(change) => ChangeKind::Regrouped,
        _ if from == to => ChangeKind::Unchanged,
        (_, Some(PageState::HwPoison)) => ChangeKind::Poisoned,
        // Nothing became nothing of another kind; one sort of free page another.
        _ if is_away(from) && is_away(to) => ChangeKind::OtherUse,
        _ if is_free(from) && is_free(to) => ChangeKind::Unchanged,
        _ if is_away(from) => ChangeKind::Plugged,
        _ if is_away(to) => ChangeKind::Unplugged,
        _ if is_free(from) => ChangeKind::Taken,
        _ if is_free(to) => ChangeKind::Freed,
        _ => ChangeKind::OtherUse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_states_has_a_kind() {
        let change = |from: Option<PageState>, to: Option<PageState>| {
            kind(&PageChange {
                start: 0,
                pages: 1,
                from: from.map(|state| (state, 0)),
                to: to.map(|state| (state, 0)),
            })
        };
        use PageState::{Anon, Deferred, File, Free, HwPoison, NoPage, Offline, Slab};
        for (from, to, expected) in [
            (Some(Free), Some(Anon), ChangeKind::Taken),
            (Some(Deferred), Some(Slab), ChangeKind::Taken),
            (Some(Deferred), Some(Free), ChangeKind::Unchanged),
            (Some(File), Some(Free), ChangeKind::Freed),
            (Some(File), Some(Anon), ChangeKind::OtherUse),
            (Some(Offline), Some(Free), ChangeKind::Plugged),
            (None, Some(Anon), ChangeKind::Plugged),
            (Some(Anon), None, ChangeKind::Unplugged),
            (Some(Free), Some(Offline), ChangeKind::Unplugged),
            (None, Some(NoPage), ChangeKind::OtherUse),
            (Some(Anon), Some(HwPoison), ChangeKind::Poisoned),
            (Some(HwPoison), Some(Free), ChangeKind::Freed),
            (None, Some(HwPoison), ChangeKind::Poisoned),
        ] {
            assert_eq!(change(from, to), expected, "{from:?} {to:?}");
        }
        for state in PageState::ALL.into_iter().map(Some).chain([None]) {
            assert_eq!(change(state, state), ChangeKind::Unchanged);
        }
    }

    #[test]
    fn the_palette_has_the_kinds_in_order() {
        assert_eq!(PALETTE.categories.len(), ChangeKind::Poisoned as usize + 1);
        assert_eq!(PALETTE.categories[ChangeKind::Freed as usize].name, "freed");
        assert_eq!(PALETTE.categories[ChangeKind::Plugged as usize].letter, 'P');
    }
}
