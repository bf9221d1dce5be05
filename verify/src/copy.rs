//! A copy of the sources, in which they may be changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::check::output;

/// The copy.
pub struct Copy {
    pub path: PathBuf,
}

/// Puts a changed file back when dropped.
pub struct Changed {
    path: PathBuf,
    before: String,
}

impl Copy {
    /// Makes or refreshes the copy of `root` below its `target`. Files that are equal are left alone, so that what was built from them stays good.
    pub fn of(root: &Path) -> Result<Self, String> {
        let path = root.join("target/mutants");
        let list = output(Command::new("git").arg("-C").arg(root).args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))?;
        if !list.ok {
            return Err(format!("git ls-files: {}", list.text));
        }
        for file in list.text.lines() {
            let (from, to) = (root.join(file), path.join(file));
            let Ok(now) = fs::read(&from) else { continue };
            if fs::read(&to).is_ok_and(|there| there == now) {
                continue;
            }
            let dir = to.parent().unwrap_or(&path);
            fs::create_dir_all(dir)
                .and_then(|()| fs::write(&to, now))
                .map_err(|error| format!("{}: {error}", to.display()))?;
        }
        Ok(Copy { path })
    }

    /// Replaces what stands exactly once in a file.
    pub fn change(&self, file: &str, find: &str, replace: &str) -> Result<Changed, String> {
        let path = self.path.join(file);
        let before = fs::read_to_string(&path).map_err(|error| format!("{file}: {error}"))?;
        match before.matches(find).count() {
            1 => {}
            0 => return Err(format!("{file} has no such text: {find}")),
            more => return Err(format!("{file} has {more} such texts: {find}")),
        }
        fs::write(&path, before.replace(find, replace)).map_err(|error| format!("{file}: {error}"))?;
        Ok(Changed { path, before })
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.before) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}
