//! The instructions of the operations, where there is a valgrind to count them.

use std::path::Path;

use smmuv3_bench::instructions;

#[test]
fn instructions_are_counted_exactly_and_keep_their_bounds() {
    let program = Path::new(env!("CARGO_BIN_EXE_smmuv3-lab"));
    let (figures, missing) = instructions::figures(program);
    if figures.is_empty() {
        // Each is missing by name, with the reason.
        assert!(!missing.is_empty() && missing.iter().all(|missing| missing.contains("valgrind")), "{missing:?}");
        return;
    }
    assert_eq!(missing, Vec::<String>::new());
    for figure in &figures {
        // Two runs that differ by so many calls of the same instructions.
        assert_eq!(figure.value.fract(), 0.0, "{figure:?}");
        assert!(figure.value >= 20.0, "{figure:?}");
        // The bounds are for code that is optimized.
        assert!(cfg!(debug_assertions) || figure.holds(), "{figure:?}");
    }
}

#[test]
fn what_cannot_be_counted_is_missing_by_name() {
    let (figures, missing) = instructions::figures(Path::new("/nowhere"));
    assert!(figures.is_empty());
    assert!(missing.iter().any(|missing| missing.starts_with("table, iova_to_phys: ")), "{missing:?}");
}
