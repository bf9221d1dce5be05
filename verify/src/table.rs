//! The table at the end.

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;

/// One line: what was expected and what was seen.
pub struct Row {
    kind: String,
    pub name: String,
    expected: String,
    seen: String,
    remark: String,
}

impl Row {
    pub fn new(kind: &str, name: &str, expected: &str, seen: &str, remark: &str) -> Self {
        let [kind, name, expected, seen, remark] = [kind, name, expected, seen, remark].map(str::to_string);
        Row { kind, name, expected, seen, remark }
    }

    pub fn as_expected(&self) -> bool {
        self.expected == self.seen
    }
}

/// Prints all rows, those that are not as expected once more at the end, and a sum. Whether all are.
pub fn print(rows: &[Row]) -> bool {
    let table = |rows: &mut dyn Iterator<Item = &Row>| {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY).set_header(["", "", "expected", "seen", ""]);
        for row in rows {
            table.add_row([&row.kind, &row.name, &row.expected, &row.seen, &row.remark]);
        }
        println!("{table}");
    };
    table(&mut rows.iter());
    let wrong = rows.iter().filter(|row| !row.as_expected()).count();
    if wrong > 0 {
        println!("\nNot as expected:");
        table(&mut rows.iter().filter(|row| !row.as_expected()));
    }
    println!("\n{} as expected, {wrong} not", rows.len() - wrong);
    wrong == 0 && !rows.is_empty()
}
