//! The terminal, taken and given back.

use std::io;
use std::mem::ManuallyDrop;

use ratatui::DefaultTerminal;

use super::app::App;
use super::view;

/// The whole terminal. Given back when it goes, and before a panic is reported.
pub struct Screen {
    /// Dropped by hand: it complains on stderr, which is this terminal, when that is gone; and panics, as it cannot.
    terminal: ManuallyDrop<DefaultTerminal>,
}

impl Screen {
    /// Takes the terminal: raw keys, the other screen, no cursor.
    ///
    /// # Errors
    /// It is none, or it refuses.
    pub fn take() -> io::Result<Screen> {
        // This also gives the terminal back in the panic hook.
        ratatui::try_init().map(|terminal| Screen { terminal: ManuallyDrop::new(terminal) })
    }

    /// Draws `app`, in whatever size the terminal has now.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self, app: &App) -> io::Result<()> {
        self.terminal.draw(|frame| view::draw(frame, app)).map(|_| ())
    }
}

impl Screen {
    /// Gives the terminal back for a while, until it is taken anew.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn give(&mut self) -> io::Result<()> {
        self.terminal.show_cursor()?;
        ratatui::try_restore()
    }

    /// Takes it anew, with nothing on it.
    ///
    /// # Errors
    /// As of [`take`](Self::take).
    pub fn take_again(&mut self) -> io::Result<()> {
        // What this replaces holds nothing but memory that was drawn to.
        self.terminal = ManuallyDrop::new(ratatui::try_init()?);
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = self.give();
    }
}
