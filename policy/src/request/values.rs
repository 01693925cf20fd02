//! Values of headers and query parameters. One that came several times is judged as the strictest: where some of its
//! values are what a route asks for and others are not, the request can be read in two ways and is refused.

use regex::Regex;

use super::message::BadRequest;
use crate::resources::{NamedMatch, TextMatch};

/// A longer escaped value of a query parameter is refused where an expression is to judge it.
const MAX_DECODED: usize = 1024;

/// A test of a header or a query parameter, compiled.
#[derive(Clone, Debug)]
pub(crate) struct ValueTest {
    name: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Exact(String),
    Regex(Regex),
    /// Never holds: what could not be compiled.
    Never,
}

impl Test {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_bytes() == value,
            Self::Regex(regex) => std::str::from_utf8(value).is_ok_and(|value| regex.is_match(value)),
            Self::Never => false,
        }
    }
}

impl ValueTest {
    pub(crate) fn new(from: &NamedMatch) -> Self {
        let test = match &from.value {
            TextMatch::Exact(text) => Test::Exact(text.clone()),
            TextMatch::Regex(pattern) => pattern.regex().map_or(Test::Never, Test::Regex),
        };
        Self { name: from.name.clone(), test }
    }

    /// Whether the headers have it.
    pub(crate) fn header(&self, headers: &[(&str, &[u8])]) -> Result<bool, BadRequest> {
        let mut lines = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(&self.name));
        let Some((_, first)) = lines.next() else { return Ok(false) };
        // A single line may hold a comma that belongs to its value.
        let mut whole = self.test.holds(first.trim_ascii());
        let (mut some, mut all, mut several) = (false, true, false);
        let mut judge = |line: &[u8]| {
            for element in line.split(|b| *b == b',') {
                let holds = self.test.holds(element.trim_ascii());
                some |= holds;
                all &= holds;
            }
        };
        judge(first);
        for (_, line) in lines {
            several = true;
            whole |= self.test.holds(line.trim_ascii());
            judge(line);
        }
        if whole && !several || all {
            return Ok(true);
        }
        if some || whole { Err(BadRequest::Header) } else { Ok(false) }
    }

    /// Whether the query has it.
    pub(crate) fn query(&self, query: Option<&str>) -> Result<bool, BadRequest> {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let (mut some, mut all) = (false, true);
        for pair in pairs {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !decoded(name).eq(self.name.bytes()) {
                continue;
            }
            let holds = match &self.test {
                Test::Exact(wanted) => decoded(value).eq(wanted.bytes()),
                test if !value.contains(['%', '+']) => test.holds(value.as_bytes()),
                test => {
                    let mut buffer = [0; MAX_DECODED];
                    let mut length = 0;
                    for byte in decoded(value) {
                        *buffer.get_mut(length).ok_or(BadRequest::Query)? = byte;
                        length += 1;
                    }
                    test.holds(buffer.get(..length).unwrap_or_default())
                }
            };
            some |= holds;
            all &= holds;
        }
        if some && !all { Err(BadRequest::Query) } else { Ok(some) }
    }
}

/// The bytes that a part of a query stands for.
fn decoded(text: &str) -> impl Iterator<Item = u8> + '_ {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (first, tail) = rest.split_first()?;
        rest = tail;
        Some(match first {
            b'+' => b' ',
            b'%' => {
                let digit = |at: usize| tail.get(at).and_then(|b| char::from(*b).to_digit(16));
                match (digit(0), digit(1)) {
                    (Some(high), Some(low)) => {
                        rest = tail.get(2..).unwrap_or_default();
                        u8::try_from(high * 16 + low).unwrap_or(b'%')
                    }
                    _ => b'%',
                }
            }
            byte => *byte,
        })
    })
}
