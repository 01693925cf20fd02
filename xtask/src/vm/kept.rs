//! The table that outlives a run: what each run sees is put beside what others saw before it or see at the same time.

use super::table::Table;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Above it stands what a person has written, below it the table.
const LINE: &str = "<!-- From here on written by `cargo xtask vm test`. -->";

/// Where the table is kept.
pub struct Kept {
    /// As JSON, so that it can be read back.
    pub results: PathBuf,
    /// As Markdown.
    pub shown: Vec<PathBuf>,
}

impl Kept {
    /// What earlier runs saw.
    pub fn read(&self) -> Result<Table> {
        match fs::read_to_string(&self.results) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Table::default()),
            text => parsed(
                &text.with_context(|| format!("cannot read {}", self.results.display()))?,
                &self.results,
            ),
        }
    }

    /// Adds what this run has seen. `every`: the tests that there are, where this run knows them all.
    pub fn add(&self, seen: &Table, every: Option<&BTreeSet<String>>) -> Result<()> {
        let place = || format!("cannot keep {}", self.results.display());
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.results)
            .with_context(place)?;
        // Another run may have seen something just now. The lock ends with the file.
        file.lock().with_context(place)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(place)?;
        let mut table = if text.is_empty() { Table::default() } else { parsed(&text, &self.results)? };
        table.merge(seen);
        if let Some(every) = every {
            table.retain(every);
        }
        file.rewind().and_then(|()| file.set_len(0)).with_context(place)?;
        file.write_all(&serde_json::to_vec_pretty(&table)?).with_context(place)?;
        let shown = table.markdown();
        self.shown.iter().try_for_each(|file| show(file, &shown))
    }
}

fn parsed(text: &str, file: &Path) -> Result<Table> {
    serde_json::from_str(text).with_context(|| {
        format!("{} is no table of results: remove it, and all tests run again", file.display())
    })
}

fn show(file: &Path, table: &str) -> Result<()> {
    let before = fs::read_to_string(file).unwrap_or_default();
    let text = match before.split_once(LINE) {
        Some((written, _)) => format!("{written}{LINE}\n\n{table}"),
        None => format!("{LINE}\n\n{table}"),
    };
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::super::table::Outcome;
    use super::*;

    #[test]
    fn runs_add_to_each_other_and_leave_what_a_person_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let shown = folder.path().join("promises.md");
        fs::write(&shown, format!("# By hand\n{LINE}\nold\n")).unwrap();
        let kept = Kept { results: folder.path().join("promises.json"), shown: vec![shown.clone()] };
        for (test, kernel) in [("a", "6.1"), ("b", "6.12")] {
            let mut seen = Table::default();
            seen.put(test, kernel, Outcome::Passed(1));
            kept.add(&seen, None).unwrap();
        }
        assert!(kept.read().unwrap().is_settled("a", "6.1"));
        let text = fs::read_to_string(&shown).unwrap();
        assert!(text.starts_with("# By hand\n") && !text.contains("old"), "{text}");
        assert!(text.contains("| a | pass, 1 s | not run |\n| b | not run | pass, 1 s |"), "{text}");
        kept.add(&Table::default(), Some(&["b".to_owned()].into())).unwrap();
        assert!(!kept.read().unwrap().is_settled("a", "6.1"), "a test that is no more");
        fs::write(&kept.results, "{").unwrap();
        assert!(kept.add(&Table::default(), None).is_err() && kept.read().is_err());
    }
}
