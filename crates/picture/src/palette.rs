//! Colours and letters. The saturated colours are those of Okabe and Ito, which people with any colour vision can tell
//! apart (<https://jfly.uni-koeln.de/color/>).

/// A colour: red, green, blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Color(pub u8, pub u8, pub u8);

impl Color {
    /// `part` of this colour, the rest of `other`.
    pub fn mixed(self, other: Color, part: f64) -> Color {
        let mix = |a: u8, b: u8| (f64::from(a) * part + f64::from(b) * (1.0 - part)).round() as u8;
        Color(mix(self.0, other.0), mix(self.1, other.1), mix(self.2, other.2))
    }
}

/// Blue.
pub const BLUE: Color = Color(0x00, 0x72, 0xb2);
/// Sky blue.
pub const SKY: Color = Color(0x56, 0xb4, 0xe9);
/// Bluish green.
pub const GREEN: Color = Color(0x00, 0x9e, 0x73);
/// Yellow.
pub const YELLOW: Color = Color(0xf0, 0xe4, 0x42);
/// Orange.
pub const ORANGE: Color = Color(0xe6, 0x9f, 0x00);
/// Vermilion.
pub const VERMILION: Color = Color(0xd5, 0x5e, 0x00);
/// Reddish purple.
pub const PURPLE: Color = Color(0xcc, 0x79, 0xa7);
/// Black.
pub const BLACK: Color = Color(0x00, 0x00, 0x00);
/// White.
pub const WHITE: Color = Color(0xff, 0xff, 0xff);
/// Grey.
pub const GREY: Color = Color(0x6f, 0x76, 0x7d);

/// One thing that pages can be.
#[derive(Clone, Copy, Debug)]
pub struct Category {
    /// What it is called.
    pub name: &'static str,
    /// Stands for it where there are no colours. Lower case: less of the cell.
    pub letter: char,
    /// On paper.
    pub light: Color,
    /// On a dark terminal.
    pub dark: Color,
}

impl Category {
    /// A category with one colour for all grounds.
    pub const fn new(name: &'static str, letter: char, color: Color) -> Category {
        Category { name, letter, light: color, dark: color }
    }

    /// A category with a colour for each ground.
    pub const fn two_toned(name: &'static str, letter: char, light: Color, dark: Color) -> Category {
        Category { name, letter, light, dark }
    }

    /// The colour on `ground`.
    pub fn color(&self, ground: Ground) -> Color {
        match ground {
            Ground::Paper => self.light,
            Ground::Dark => self.dark,
        }
    }
}

/// What a picture lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// White.
    Paper,
    /// A terminal, taken to be dark.
    Dark,
}

impl Ground {
    /// Its colour.
    pub fn color(self) -> Color {
        match self {
            Ground::Paper => WHITE,
            Ground::Dark => Color(0x14, 0x18, 0x1d),
        }
    }
}

/// The categories of a picture, and the rules by which a cell that holds several shows one.
#[derive(Debug)]
pub struct Palette {
    /// All of them, in the order of the legend.
    pub categories: &'static [Category],
    /// The first so many are background: a cell shows one of them only where the others are too few.
    pub quiet: usize,
    /// A single page of this one shows.
    pub alarm: Option<usize>,
    /// What a cell shows, for the legend; the strengths follow.
    pub rule: &'static str,
    /// Shares of a cell, in per cent: from these on a category shows pale, medium, full.
    pub steps: [u8; 3],
}

/// How strongly a cell shows its category.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Strength {
    /// From the first of [`Palette::steps`].
    Pale,
    /// From the second.
    Medium,
    /// From the third.
    Full,
}

impl Strength {
    /// The part of the category's own colour.
    fn part(self) -> f64 {
        match self {
            Strength::Pale => 0.38,
            Strength::Medium => 0.68,
            Strength::Full => 1.0,
        }
    }
}

/// What a cell shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Look {
    /// The category.
    pub category: usize,
    /// How much of it.
    pub strength: Strength,
}

impl Palette {
    /// What a cell with these pages by category shows; `None` if it has none.
    pub fn look(&self, pages: &[u64]) -> Option<Look> {
        let total: u64 = pages.iter().sum();
        if total == 0 {
            return None;
        }
        if let Some(category) = self.alarm.filter(|&alarm| pages[alarm] > 0) {
            return Some(Look { category, strength: Strength::Full });
        }
        let most = |range: std::ops::Range<usize>| range.rev().max_by_key(|&category| pages[category]);
        if let Some(category) = most(self.quiet..pages.len()) {
            let reaches = |percent: u8| {
                u128::from(pages[category]) * 100 >= u128::from(total) * u128::from(percent)
                    && pages[category] > 0
            };
            let strengths = [Strength::Pale, Strength::Medium, Strength::Full];
            let reached = strengths.into_iter().zip(self.steps).rfind(|&(_, percent)| reaches(percent));
            if let Some((strength, _)) = reached {
                return Some(Look { category, strength });
            }
        }
        // Mostly background; where there is none at all, many others are all few.
        let category = most(0..self.quiet).filter(|&category| pages[category] > 0).or(most(0..pages.len()));
        Some(Look { category: category?, strength: Strength::Full })
    }

    /// The colour of a look.
    pub fn color(&self, look: Look, ground: Ground) -> Color {
        let toward = self.categories.first().map_or(ground.color(), |quiet| quiet.color(ground));
        match self.categories.get(look.category) {
            Some(category) => category.color(ground).mixed(toward, look.strength.part()),
            None => toward,
        }
    }

    /// The letter of a look.
    pub fn letter(&self, look: Look) -> char {
        let letter = self.categories.get(look.category).map_or('?', |category| category.letter);
        if look.strength == Strength::Full { letter } else { letter.to_ascii_lowercase() }
    }

    /// The rule by which a cell is coloured, or has its letter, in words.
    pub fn rule(&self, is_text: bool) -> String {
        let [pale, medium, full] = self.steps;
        let alarm = self.alarm.and_then(|alarm| self.categories.get(alarm));
        let alarm = alarm.map_or(String::new(), |alarm| format!(" One {} page is enough.", alarm.name));
        let rule = self.rule;
        match is_text {
            true => {
                format!("{rule}: a capital from {full} % of the cell, a small letter from {pale} %.{alarm}")
            }
            false => format!(
                "{rule}: full colour from {full} % of the cell, medium from {medium} %, pale from {pale} %.{alarm}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static PALETTE: Palette = Palette {
        categories: &[
            Category::two_toned("free", '.', WHITE, BLACK),
            Category::new("anonymous", 'A', BLUE),
            Category::new("page cache", 'C', SKY),
            Category::new("poisoned", '!', BLACK),
        ],
        quiet: 1,
        alarm: Some(3),
        rule: "A cell shows most of it",
        steps: [10, 33, 66],
    };

    fn look(pages: [u64; 4]) -> (usize, Strength) {
        let look = PALETTE.look(&pages).unwrap();
        (look.category, look.strength)
    }

    #[test]
    fn a_cell_shows_what_it_is_mostly_used_for() {
        assert_eq!(look([100, 0, 0, 0]), (0, Strength::Full));
        assert_eq!(look([91, 9, 0, 0]), (0, Strength::Full));
        assert_eq!(look([90, 10, 0, 0]), (1, Strength::Pale));
        assert_eq!(look([50, 16, 34, 0]), (2, Strength::Medium));
        assert_eq!(look([0, 66, 34, 0]), (1, Strength::Full));
        assert_eq!(PALETTE.look(&[0; 4]), None);
    }

    #[test]
    fn one_broken_page_shows() {
        assert_eq!(look([1 << 40, 5, 5, 1]), (3, Strength::Full));
    }

    #[test]
    fn letters_tell_strong_from_weak() {
        assert_eq!(PALETTE.letter(Look { category: 1, strength: Strength::Full }), 'A');
        assert_eq!(PALETTE.letter(Look { category: 1, strength: Strength::Pale }), 'a');
    }

    #[test]
    fn every_pair_of_saturated_colours_differs_in_luminance_or_hue() {
        let colors = [BLUE, SKY, GREEN, YELLOW, ORANGE, VERMILION, PURPLE, GREY, BLACK, WHITE];
        for (at, a) in colors.iter().enumerate() {
            for b in &colors[at + 1..] {
                let distance = [(a.0, b.0), (a.1, b.1), (a.2, b.2)]
                    .iter()
                    .map(|&(a, b)| u32::from(a.abs_diff(b)).pow(2))
                    .sum::<u32>();
                assert!(distance > 60 * 60, "{a:?} {b:?}");
            }
        }
    }
}
