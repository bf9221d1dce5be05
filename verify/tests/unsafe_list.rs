//! `unsafe.md` lists what there is, and names tests that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Rust file of the workspace, by its path in it.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join("crates"), root().join("verify")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).expect("below").to_str().expect("text").to_owned();
                found.insert(name, fs::read_to_string(path).expect("text"));
            }
        }
    }
    found
}

/// Rows of the table: file, code, tests.
fn rows() -> Vec<[String; 3]> {
    let list = fs::read_to_string(root().join("verify/unsafe.md")).expect("the list");
    let rows = list.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned());
        std::array::from_fn(|_| cells.next().expect("three cells"))
    })
    .collect()
}

fn is_test(file: &str) -> bool {
    file.contains("/tests/") || file.contains("/loom_tests/") || file.ends_with("_test.rs")
}

/// The lines with the word, up to the unit tests at the end; comments are none.
fn uses(text: &str) -> Vec<&str> {
    let tests = text.lines().position(|line| line.starts_with("mod tests {")).unwrap_or(usize::MAX);
    let code = text.lines().take(tests).map(str::trim).filter(|line| !line.starts_with("//"));
    let is_word = |word: &str| word == "unsafe";
    code.filter(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(is_word)).collect()
}

#[test]
fn the_list_has_every_use_of_unsafe_in_order() {
    let rows = rows();
    let sources = sources();
    let mut left: BTreeSet<&str> = rows.iter().map(|[file, ..]| file.trim_matches('`')).collect();
    for (file, text) in sources.iter().filter(|(file, _)| !is_test(file)) {
        let listed = rows.iter().filter(|[name, ..]| name.trim_matches('`') == file);
        let listed: Vec<&str> = listed.map(|[_, code, _]| code.trim_matches('`')).collect();
        let uses = uses(text);
        let same = uses.len() == listed.len() && uses.iter().zip(&listed).all(|(line, code)| line.contains(code));
        assert!(same, "{file} has\n{uses:#?}\nand verify/unsafe.md lists\n{listed:#?}");
        left.remove(file.as_str());
    }
    assert!(left.is_empty(), "{left:?} is not there");
    assert!(rows.len() > 10);
}

#[test]
fn every_test_that_the_list_names_is_there() {
    let sources = sources();
    for [_, code, tests] in rows() {
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).filter(|name| name.contains('_')).collect();
        assert!(!names.is_empty(), "{code} has no test");
        for name in names {
            let declaration = format!("fn {name}()");
            assert!(sources.values().any(|text| text.contains(&declaration)), "there is no test {name}");
        }
    }
}
