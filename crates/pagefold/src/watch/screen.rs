//! The terminal, taken and given back.

use std::io;

use ratatui::DefaultTerminal;

use super::app::App;
use super::view;

/// The whole terminal. Given back when it goes, and before a panic is reported.
pub struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal: raw keys, the other screen, no cursor.
    ///
    /// # Errors
    /// It is none, or it refuses.
    pub fn take() -> io::Result<Screen> {
        // This also gives the terminal back in the panic hook.
        ratatui::try_init().map(|terminal| Screen { terminal })
    }

    /// Draws `app`, in whatever size the terminal has now.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self, app: &App) -> io::Result<()> {
        self.terminal.draw(|frame| view::draw(frame, app)).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = ratatui::try_restore();
    }
}
