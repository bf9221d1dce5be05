//! A copy of the sources, in which they may be changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::check::output;

/// A change of a source file, in which `find` stands once.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    pub file: String,
    pub find: String,
    pub replace: String,
}

/// The copy.
pub struct Copy {
    pub path: PathBuf,
}

/// Puts changed files back when dropped.
pub struct Changed {
    /// Paths and contents before, in the order of the changes. A file may stand here several times.
    before: Vec<(PathBuf, String)>,
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

    /// Carries out some edits, one after the other.
    pub fn change(&self, edits: &[Edit]) -> Result<Changed, String> {
        let mut changed = Changed { before: Vec::new() };
        for Edit { file, find, replace } in edits {
            let path = self.path.join(file);
            let before = fs::read_to_string(&path).map_err(|error| format!("{file}: {error}"))?;
            match before.matches(find).count() {
                1 => {}
                0 => return Err(format!("{file} has no such text: {find}")),
                more => return Err(format!("{file} has {more} such texts: {find}")),
            }
            let after = before.replace(find, replace);
            changed.before.push((path.clone(), before));
            fs::write(&path, after).map_err(|error| format!("{file}: {error}"))?;
        }
        Ok(changed)
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        for (path, before) in self.before.iter().rev() {
            if let Err(error) = fs::write(path, before) {
                eprintln!("{}: {error}", path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_edits_of_a_file_are_put_back_together_also_when_one_does_not_fit() {
        let path = std::env::temp_dir().join(format!("smmuv3-verify-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let (copy, file) = (Copy { path: path.clone() }, path.join("a"));
        fs::write(&file, "one two").unwrap();
        let edit = |find: &str, replace: &str| Edit { file: "a".into(), find: find.into(), replace: replace.into() };
        let changed = copy.change(&[edit("one", "1"), edit("two", "2")]).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1 2");
        drop(changed);
        assert_eq!(fs::read_to_string(&file).unwrap(), "one two");
        assert!(copy.change(&[edit("one", "1"), edit("one", "2")]).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "one two");
        fs::remove_dir_all(&path).unwrap();
    }
}
