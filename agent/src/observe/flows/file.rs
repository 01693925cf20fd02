//! Flows in a file that never grows beyond its bound.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::record::{FlowLine, LeftOut};

/// A file of flows, and the one before it (`.1`). Together they hold at most what they are allowed; which records went
/// is said in the first line after.
#[derive(Debug)]
pub struct FlowFile {
    path: PathBuf,
    /// Of each of the two.
    most_bytes: u64,
    file: File,
    bytes: u64,
    records: u64,
    /// Records in the file before this one.
    before: u64,
    /// Records that could not be written.
    unwritten: u64,
}

fn open(path: &Path) -> io::Result<File> {
    // Who reached whom is nobody else's business; and a link is not where the operator said.
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
}

/// How many lines a file has.
fn lines(path: &Path) -> u64 {
    File::open(path).map_or(0, |file| BufReader::new(file).split(b'\n').map_while(Result::ok).count() as u64)
}

fn previous(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

impl FlowFile {
    /// Goes on with a file, or makes it. It and the one before it hold at most `most_bytes` together.
    ///
    /// # Errors
    /// If it cannot be opened or is not a regular file.
    pub fn open(path: &Path, most_bytes: u64) -> io::Result<Self> {
        let file = open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let mut it = Self {
            path: path.to_owned(),
            most_bytes: most_bytes / 2,
            file,
            bytes: meta.len(),
            records: lines(path),
            before: lines(&previous(path)),
            unwritten: 0,
        };
        it.end_line()?;
        Ok(it)
    }

    /// A line that an earlier agent did not finish is ended, so that it spoils no other.
    fn end_line(&mut self) -> io::Result<()> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        if self.bytes == 0 {
            return Ok(());
        }
        let mut last = [0];
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            // The half of a record is none.
            let whole = BufReader::new(File::open(&self.path)?);
            let kept: u64 = whole
                .split(b'\n')
                .map_while(Result::ok)
                .map(|line| line.len() as u64 + 1)
                .scan(0, |at, length| {
                    *at += length;
                    Some(*at)
                })
                .take_while(|at| *at <= self.bytes)
                .last()
                .unwrap_or(0);
            self.file.set_len(kept)?;
            self.bytes = kept;
            self.records = self.records.saturating_sub(1);
            self.unwritten += 1;
        }
        Ok(())
    }

    /// Writes lines. `missing` makes the line that says how many records are not there, and why.
    ///
    /// # Errors
    /// What the system says. The records count as unwritten and the count is written when writing goes on.
    pub fn write(&mut self, flows: &[FlowLine], missing: impl Fn(u64, &str) -> LeftOut) -> io::Result<()> {
        if flows.is_empty() && self.unwritten == 0 {
            return Ok(());
        }
        let mut text = String::new();
        let mut records = 0;
        let mut put = |line: &FlowLine| {
            text += &line.to_json();
            text.push('\n');
            records += 1;
        };
        if self.unwritten > 0 {
            put(&FlowLine::LeftOut(missing(self.unwritten, "they could not be written")));
        }
        flows.iter().for_each(&mut put);
        let result = self.append(&text, records, &missing);
        match &result {
            Ok(()) => self.unwritten = 0,
            Err(_) => self.unwritten += flows.len() as u64,
        }
        result
    }

    fn append(
        &mut self,
        text: &str,
        records: u64,
        missing: &impl Fn(u64, &str) -> LeftOut,
    ) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.most_bytes {
            let gone = self.before;
            std::fs::rename(&self.path, previous(&self.path))?;
            self.file = open(&self.path)?;
            (self.before, self.records, self.bytes) = (self.records, 0, 0);
            if gone > 0 {
                let line = FlowLine::LeftOut(missing(gone, "the oldest were removed: the file has a bound"))
                    .to_json();
                self.put(&format!("{line}\n"), 1)?;
            }
        }
        self.put(text, records)
    }

    fn put(&mut self, text: &str, records: u64) -> io::Result<()> {
        // A full disk may take a part of it: that part is taken out again, so that every line is whole.
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += text.len() as u64;
        self.records += records;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::flows::record::VERSION;
    use std::fs;

    fn missing(left_out: u64, why: &str) -> LeftOut {
        let time = time::OffsetDateTime::UNIX_EPOCH;
        LeftOut { version: VERSION, node: "a".into(), time, left_out, why: why.into() }
    }

    fn line(n: u64) -> FlowLine {
        FlowLine::LeftOut(missing(n, "a line of some length to fill the file with"))
    }

    fn read(path: &Path) -> Vec<FlowLine> {
        fs::read_to_string(path).unwrap().lines().map(|line| FlowLine::parse(line).unwrap()).collect()
    }

    #[test]
    fn it_keeps_within_its_bound_and_says_what_it_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows.jsonl");
        let mut file = FlowFile::open(&path, 4000).unwrap();
        for n in 0..200 {
            file.write(&[line(n)], missing).unwrap();
            let total: u64 =
                [&path, &previous(&path)].iter().map(|it| fs::metadata(it).map_or(0, |m| m.len())).sum();
            assert!(total <= 4000 + 300, "{total}");
        }
        let (old, new) = (read(&previous(&path)), read(&path));
        let removed = |lines: &[FlowLine]| match &lines[0] {
            FlowLine::LeftOut(it) if it.why.contains("bound") => it.left_out,
            _ => 0,
        };
        assert!(removed(&old) > 0 && removed(&new) > 0);
        assert_eq!(new.last(), Some(&line(199)));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions(),
            std::os::unix::fs::PermissionsExt::from_mode(0o100_600)
        );
        // Another agent goes on where this one ended.
        drop(file);
        let mut file = FlowFile::open(&path, 4000).unwrap();
        file.write(&[line(200)], missing).unwrap();
        assert_eq!(read(&path).len(), new.len() + 1);
    }

    #[test]
    fn half_a_line_is_taken_out_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flows.jsonl");
        let whole = line(1).to_json();
        fs::write(&path, format!("{whole}\n{}", &whole[..20])).unwrap();
        let mut file = FlowFile::open(&path, 10_000).unwrap();
        file.write(&[line(2)], missing).unwrap();
        let lines = read(&path);
        assert_eq!(lines.len(), 3);
        assert!(matches!(&lines[1], FlowLine::LeftOut(it) if it.left_out == 1 && it.why.contains("written")));
    }

    #[test]
    fn a_link_or_a_folder_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(FlowFile::open(&link, 10_000).is_err());
        assert!(FlowFile::open(dir.path(), 10_000).is_err());
        assert!(FlowFile::open(&file, 10_000).is_ok(), "the control");
    }
}
