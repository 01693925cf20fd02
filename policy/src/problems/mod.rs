//! What is wrong with the resources: told to people, never swallowed.

use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something that was written is not in force.
    Error,
    /// Everything that was written is in force, but probably not as meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// As printed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A reason or a field that is longer than this is cut in its middle: whoever writes a megabyte into a field gains no megabyte in a
/// status, a log or an event.
const LONGEST: usize = 1024;

/// The beginning and the end of a text that is too long.
fn bounded(text: String) -> String {
    if text.len() <= LONGEST {
        return text;
    }
    let head = text.floor_char_boundary(LONGEST / 2);
    let tail = text.ceil_char_boundary(text.len() - LONGEST / 4);
    match (text.get(..head), text.get(tail..)) {
        (Some(head), Some(tail)) => format!("{head} [… {} bytes in all …] {tail}", text.len()),
        _ => String::new(),
    }
}

/// Where a resource was written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize)]
pub struct Origin {
    /// The file; empty: it did not come from a file.
    pub file: String,
    /// The document in the file, counted from 1; 0: it did not come from a file.
    pub document: u32,
}

impl Origin {
    /// A document of a file, counted from 1.
    pub fn new(file: impl Into<String>, document: u32) -> Self {
        Self { file: file.into(), document }
    }
}

/// Something wrong with a resource, or worth knowing about it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file; empty: it did not come from a file.
    pub file: String,
    /// The document in the file, counted from 1; 0: it did not come from a file.
    pub document: u32,
    /// The line in the file, counted from 1; 0: unknown.
    pub line: u32,
    /// `Kind namespace/name`; empty: unknown.
    pub resource: String,
    /// The field's path; empty: the whole resource.
    pub field: String,
    /// What is wrong, and what follows from it.
    pub reason: String,
    /// What to do about it; empty: nothing.
    pub remedy: String,
}

impl Problem {
    /// A problem of the document at `origin`.
    pub fn new(severity: Severity, origin: &Origin, reason: impl Into<String>) -> Self {
        Self {
            severity,
            file: origin.file.clone(),
            document: origin.document,
            line: 0,
            resource: String::new(),
            field: String::new(),
            reason: bounded(reason.into()),
            remedy: String::new(),
        }
    }

    /// With the resource that it is about.
    #[must_use]
    pub fn resource(mut self, resource: impl fmt::Display) -> Self {
        self.resource = resource.to_string();
        self
    }

    /// With the field that it is about, and its line (0: unknown).
    #[must_use]
    pub fn field(mut self, field: impl Into<String>, line: u32) -> Self {
        self.field = bounded(field.into());
        if line != 0 {
            self.line = line;
        }
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// `error: shop/rules.yaml:12 (document 2): Server shop/redis: spec.port: what (do this)`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.severity.as_str())?;
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            if self.line != 0 {
                write!(f, ":{}", self.line)?;
            }
            if self.document != 0 {
                write!(f, " (document {})", self.document)?;
            }
            f.write_str(": ")?;
        }
        for part in [&self.resource, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.reason)?;
        if !self.remedy.is_empty() {
            write!(f, " ({})", self.remedy)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_in_one_line() {
        let problem = Problem::new(Severity::Error, &Origin::new("shop/rules.yaml", 2), "is not a port")
            .resource("Server shop/redis")
            .field("spec.port", 12)
            .remedy("write a number from 1 to 65535 or a port's name");
        assert_eq!(
            problem.to_string(),
            "error: shop/rules.yaml:12 (document 2): Server shop/redis: spec.port: is not a port \
             (write a number from 1 to 65535 or a port's name)"
        );
        let long = Problem::new(Severity::Note, &Origin::default(), format!("a{}z", "é".repeat(500_000)));
        assert!(long.reason.starts_with("aé") && long.reason.ends_with("éz"), "{}", long.reason);
        assert!(long.reason.len() < 900 && long.reason.contains("1000002 bytes"), "{}", long.reason);
        let bare = Problem::new(Severity::Note, &Origin::default(), "nothing is in force");
        assert_eq!(bare.to_string(), "note: nothing is in force");
    }
}
