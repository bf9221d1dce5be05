//! Any text, taken for a scenario file: it is a scenario that can be set up, or what is wrong is said in one line. For the fuzzer and for the
//! tests.

pub use scenario::run;

// The lab's own modules: in it, they are private.
#[allow(dead_code, reason = "what only a run needs")]
#[path = "../../src/scenario"]
mod scenario {
    mod check;
    mod file;
    mod source;
    mod step;

    use smmuv3_model::{Model, ModelConfig};
    use std::path::Path;

    /// Panics if reading does, or if what is wrong is not said well. Returns whether it is a scenario.
    pub fn run(text: &str) -> bool {
        let source = source::Source::new(Path::new("file.toml"), text.to_owned());
        let file = match source.parse().and_then(|file| check::check(&file).map(|()| file)) {
            Ok(file) => file,
            Err(problem) => {
                let told = source.tell(&problem);
                assert!(told.lines().count() == 1, "{told:?}");
                let line = told.split(':').nth(1).and_then(|line| line.parse::<usize>().ok());
                let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
                assert!(line.is_some_and(|line| (1..=lines).contains(&line)), "{told:?} in {lines} lines");
                return false;
            }
        };
        let smmus = file.smmu.iter().map(|smmu| smmu.config()).collect();
        Model::new(ModelConfig { smmus, ram_size: 0x1000, ..ModelConfig::default() });
        file.domain.iter().for_each(|domain| {
            domain.geometry();
        });
        true
    }
}
