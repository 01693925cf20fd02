//! The matrix as one page that needs nothing else.

use super::grid::Grid;

const PAGE: &str = include_str!("page.html");
/// Where the page takes its data.
const PLACE: &str = "{\"the matrix\":\"is put here\"}";

/// The page.
pub(super) fn write(grid: &Grid) -> Result<String, serde_json::Error> {
    // Nothing in the data can end the element that it stands in.
    let data = serde_json::to_string(grid)?
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029");
    Ok(PAGE.replacen(PLACE, &data, 1).trim_end().to_owned())
}
