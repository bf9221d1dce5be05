//! The text of a scenario file, and what is wrong in it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::file::File;

/// What is wrong, and where: an offset into the text.
#[derive(Debug)]
pub(super) struct Problem {
    pub at: usize,
    pub what: String,
}

impl Problem {
    pub(super) fn new(at: usize, what: impl fmt::Display) -> Self {
        Problem { at, what: what.to_string() }
    }
}

/// A file as it was read.
pub(super) struct Source {
    pub path: PathBuf,
    text: String,
}

impl Source {
    pub(super) fn new(path: &Path, text: String) -> Source {
        Source { path: path.to_owned(), text }
    }

    pub(super) fn read(path: &Path) -> Result<Source, String> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Source::new(path, text)),
            Err(error) => Err(format!("cannot read {}: {error}", path.display())),
        }
    }

    /// What the file says, as far as its form goes.
    pub(super) fn parse(&self) -> Result<File, Problem> {
        toml::from_str(&self.text).map_err(|error| {
            // One line, whatever the parser has to say.
            let what = error.message().lines().collect::<Vec<_>>().join("; ");
            Problem { at: error.span().map_or(0, |span| span.start), what }
        })
    }

    /// The line at an offset, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }

    /// `file:line: what`
    pub(super) fn tell(&self, problem: &Problem) -> String {
        format!("{}:{}: {}", self.path.display(), self.line(problem.at), problem.what)
    }
}
