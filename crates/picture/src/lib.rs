//! Pictures of physical memory: a grid of cells, each of which stands for many pages.
//!
//! What is drawn is plain data: a [`Subject`] says where memory is and hands out its pages by category. Nothing here reads
//! a machine, looks at a terminal or writes a file.
//!
//! * [`axis`] lays page numbers out in a row of slots, holes made short.
//! * [`cell_order`] turns slots into places: line by line, or along a Hilbert curve.
//! * [`cells`] counts pages by category and cell. Its size follows the picture, not the machine.
//! * [`palette`] says what categories there are, and how a cell with several looks.
//! * [`grid`] is the three together: memory, counted into cells at their places.
//! * [`zones`] finds zones on a grid.
//! * [`draw`] makes a [`scene`] of a grid and its [`legend`], which [`svg`] and [`png`] write.
//! * [`terminal`] writes text.
//! * [`amount`] and [`text`] write numbers, addresses and foreign text for people.

pub mod amount;
pub mod axis;
pub mod cell_order;
pub mod cells;
pub mod draw;
pub mod grid;
pub mod legend;
pub mod palette;
pub mod png;
pub mod scene;
mod style;
mod subject;
pub mod svg;
pub mod terminal;
pub mod text;
pub mod zones;

pub use cell_order::CellOrder;
pub use grid::{Grid, GridSize};
pub use palette::Palette;
pub use subject::{Extra, Piece, Repeated, Subject, VisitPieces, ZoneSpan};
