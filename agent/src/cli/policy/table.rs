//! Tables that fit the terminal they are shown on.

use comfy_table::{ContentArrangement, Table, presets};
use std::io::IsTerminal as _;

/// How wide what is printed may be: the terminal's width; for a file or a pipe, as wide as it takes.
pub(super) fn width() -> Option<u16> {
    let out = std::io::stdout();
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    if let Some(columns) = columns {
        return Some(columns);
    }
    if !out.is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(&out).ok().map(|size| size.ws_col).filter(|columns| *columns > 20)
}

/// A table without lines, so that it reads aloud and greps well; its columns wrap where `width` is too small.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>, width: Option<u16>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    match width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    table.set_header(header.iter().map(|it| it.to_uppercase()));
    table.add_rows(rows);
    // The first column begins where the line does, and no line ends in blanks.
    for column in table.column_iter_mut().take(1) {
        column.set_padding((0, 1));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}
