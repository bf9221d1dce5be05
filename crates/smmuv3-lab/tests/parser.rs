//! The examples, and what becomes of them when they are damaged: the seeds of the fuzzer's target `scenario`.

#[path = "common/parser.rs"]
mod parser;

use std::fs;
use std::path::Path;

fn examples() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let entries = [folder.clone(), folder.join("broken")].map(|folder| fs::read_dir(folder).expect("it is there"));
    let paths = entries.into_iter().flatten().map(|entry| entry.expect("it can be read").path());
    paths.filter(|path| path.is_file()).map(|path| fs::read_to_string(path).expect("text")).collect()
}

#[test]
fn every_example_is_a_scenario() {
    let examples = examples();
    assert!(examples.len() > 20);
    assert!(examples.iter().all(|text| parser::run(text)));
}

/// Each example with a line left out, doubled or exchanged for one of another example, and with a word of another in the place of one.
#[test]
fn damaged_examples_are_scenarios_or_wrong_in_one_line() {
    let examples = examples();
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    let (mut good, mut bad) = (0, 0);
    for _ in 0..3_000 {
        let mut lines: Vec<String> = examples[random(examples.len())].lines().map(str::to_owned).collect();
        let others: Vec<&str> = examples[random(examples.len())].lines().collect();
        for _ in 0..1 + random(3) {
            let at = random(lines.len());
            let other = others[random(others.len())];
            match random(4) {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, lines[at].clone()),
                2 => lines[at] = other.to_owned(),
                _ => {
                    let mut words: Vec<&str> = lines[at].split(' ').collect();
                    let others: Vec<&str> = other.split(' ').collect();
                    let word = random(words.len());
                    words[word] = others[random(others.len())];
                    lines[at] = words.join(" ");
                }
            }
            if lines.is_empty() {
                lines.push(String::new());
            }
        }
        if parser::run(&lines.join("\n")) { good += 1 } else { bad += 1 }
    }
    assert!(good > 100 && bad > 100, "{good} scenarios, {bad} others: this tests too little");
}
