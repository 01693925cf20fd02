//! Regular expressions of routes: bounded in time and memory, and always over the whole of a text.

use std::{fmt, sync::Arc};

use regex::{Regex, RegexBuilder};

/// The longest expression, in bytes: what the Gateway API allows a header's value to be.
pub const MAX_PATTERN: usize = 4096;
/// The most memory that a compiled expression may take, in bytes.
const MAX_COMPILED: usize = 128 << 10;
/// What one expression counts for at least against [`MAX_TOGETHER`].
const LEAST_COUNTED: usize = 8 << 10;
/// The most memory that the compiled expressions of a route may take together, in bytes: at most 128 expressions.
const MAX_TOGETHER: usize = 1 << 20;
/// The most memory that matching may take for its cache, in bytes.
const MAX_CACHE: usize = 256 << 10;
/// Deeper nesting is refused.
const MAX_NESTING: u32 = 32;

/// A regular expression that compiles within its bounds. Matching is linear in the text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

/// What the expressions of one route may still take.
pub(super) struct PatternBudget {
    left: usize,
    told: bool,
}

impl Default for PatternBudget {
    fn default() -> Self {
        Self { left: MAX_TOGETHER, told: false }
    }
}

impl PatternBudget {
    /// An expression, counted as the least power of two that its compiled form keeps within. Fails as
    /// [`Pattern::new`] does, and when nothing is left: then nothing is compiled any more, and there is a reason the
    /// first time alone.
    pub(super) fn take(&mut self, text: &str) -> Result<Pattern, Option<String>> {
        if self.left >= LEAST_COUNTED {
            let pattern = Pattern::new(text).map_err(Some)?;
            let mut size = LEAST_COUNTED;
            while size < MAX_COMPILED && compile(text, size).is_err() {
                size *= 2;
            }
            if size <= self.left {
                self.left -= size;
                return Ok(pattern);
            }
            self.left = 0;
        }
        let first = !std::mem::replace(&mut self.told, true);
        let reason = "takes, with the route's expressions before it, too much memory: 128 small expressions, \
                      or 8 of the greatest, are a route's most";
        Err(first.then(|| reason.to_owned()))
    }
}

impl Pattern {
    /// Fails, with the reason, for what is no expression or exceeds the bounds.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > MAX_PATTERN {
            return Err(format!("is longer than {MAX_PATTERN} bytes"));
        }
        compile(text, MAX_COMPILED)?;
        Ok(Self(text.into()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The expression over the whole of a text. `None` never happens for one that [`Pattern::new`] made.
    pub(crate) fn regex(&self) -> Option<Regex> {
        compile(&self.0, MAX_COMPILED).ok()
    }
}

fn compile(text: &str, size: usize) -> Result<Regex, String> {
    // By itself first: `a)|(b` would be an expression only between the parentheses.
    let build = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(size)
            .dfa_size_limit(MAX_CACHE)
            .nest_limit(MAX_NESTING)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => "takes too much memory".to_owned(),
                error => format!("is not a regular expression: {}", brief(&error)),
            })
    };
    build(text)?;
    build(&format!("^(?:{text})$"))
}

/// The last line of the library's drawing says what is wrong.
fn brief(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_over_the_whole_text() {
        for (pattern, text, fits) in [
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("/a", "x/a", false),
            ("/a|/b", "/b", true),
            ("/a|/b", "/bx", false),
            ("/a.*", "/a\nb", false),
            ("(?s)/a.*", "/a\nb", true),
            ("(?x) /a", "/a", true),
            ("(?m)/a$", "/a\n/b", false),
            ("/a$", "/a\n", false),
        ] {
            let it = Pattern::new(pattern).map(|it| it.regex().unwrap().is_match(text));
            assert_eq!(it, Ok(fits), "{pattern} {text:?}");
        }
    }

    #[test]
    fn hostile_expressions_are_refused() {
        for pattern in [
            "(".to_owned(),
            "a)|(b".to_owned(),
            "(?x) a # swallows what closes it".to_owned(),
            "\\1".to_owned(),
            "(?=x)".to_owned(),
            "x{1000}{1000}".to_owned(),
            "\\w{1000}".to_owned(),
            "((((a{50}){50}){50}){50})".to_owned(),
            format!("{}{}", "(".repeat(100), ")".repeat(100)),
            "a".repeat(MAX_PATTERN + 1),
        ] {
            assert!(Pattern::new(&pattern).is_err(), "{}", &pattern[..pattern.len().min(40)]);
        }
        assert!(Pattern::new("(a*)*b|[a-z]{1,20}").is_ok(), "the control");
    }
}
