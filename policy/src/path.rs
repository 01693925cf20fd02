//! Paths that mean one thing to everybody.

use std::borrow::Cow;

/// Why a path is not judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPath {
    /// It does not begin with a slash.
    #[error("does not begin with a slash")]
    NotAbsolute,
    /// `//`.
    #[error("has an empty segment")]
    EmptySegment,
    /// `.` or `..`, escaped or not.
    #[error("has a segment . or ..")]
    DotSegment,
    /// `%2F`, `%5C` or a backslash, which some take for a slash.
    #[error("has a slash that is escaped or leans backward")]
    HiddenSlash,
    /// A control character, escaped or not, or a byte outside of ASCII.
    #[error("has a character that no path has")]
    BadCharacter,
    /// A percent sign without two digits, an escaped percent sign, an escaped letter or digit, or escapes that are no
    /// UTF-8: some take those for Latin-1, and some take `%C0%AF` for a slash.
    #[error("has an escape that can be read in two ways")]
    BadEscape,
}

/// Checks that a path, without its query, is read alike by whoever reads it: what is judged is then what is forwarded.
///
/// # Errors
/// What can be read in two ways.
pub fn check_path(path: &str) -> Result<(), BadPath> {
    if path == "*" {
        // OPTIONS of the server as a whole.
        return Ok(());
    }
    if !path.starts_with('/') {
        return Err(BadPath::NotAbsolute);
    }
    let bytes = path.as_bytes();
    let (mut at, mut dots) = (0, false);
    while let Some(byte) = bytes.get(at).copied() {
        at += 1;
        match byte {
            b'/' => {
                let rest = bytes.get(at..).unwrap_or_default();
                if rest.first() == Some(&b'/') {
                    return Err(BadPath::EmptySegment);
                }
                dots |= rest.first() == Some(&b'.') && begins_with_dots_alone(rest);
            }
            b'%' => {
                let escaped = escaped(bytes, at).ok_or(BadPath::BadEscape)?;
                at += 2;
                match escaped {
                    b'/' | b'\\' => return Err(BadPath::HiddenSlash),
                    0..=0x1f | 0x7f => return Err(BadPath::BadCharacter),
                    // Characters that never need to be escaped: escaped they hide from one reader and not from another.
                    b'%' | b'.' | b'-' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                        return Err(BadPath::BadEscape);
                    }
                    lead @ 0x80.. => at = end_of_character(bytes, at, lead).ok_or(BadPath::BadEscape)?,
                    _ => {}
                }
            }
            b'\\' => return Err(BadPath::HiddenSlash),
            0..=0x20 | 0x7f.. | b'#' | b'?' => return Err(BadPath::BadCharacter),
            _ => {}
        }
    }
    if dots { Err(BadPath::DotSegment) } else { Ok(()) }
}

/// What a path says: itself, checked, with every escape replaced by what it stands for. Two paths that differ in how
/// their characters are escaped are one. Only a path with an escape is copied.
///
/// No escape that [`check_path`] lets pass stands for a slash, a backslash, a percent sign, a dot or a control character,
/// and `%3B` (a semicolon) is refused behind a segment's dots as a semicolon is: what is made has the segments that were
/// written, none of them `.` or `..`, and no escape any more. It may have a `?` or `#`, which are then the segment's own:
/// who asks has cut off the query before.
///
/// # Errors
/// What [`check_path`] refuses.
pub(crate) fn meaning(path: &str) -> Result<Cow<'_, str>, BadPath> {
    check_path(path)?;
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    let bytes = path.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at).copied() {
        at += 1;
        if byte == b'%' {
            plain.push(escaped(bytes, at).ok_or(BadPath::BadEscape)?);
            at += 2;
        } else {
            plain.push(byte);
        }
    }
    String::from_utf8(plain).map(Cow::Owned).map_err(|_| BadPath::BadEscape)
}

/// The byte that two digits stand for.
fn escaped(path: &[u8], digits: usize) -> Option<u8> {
    let digit = |at: usize| path.get(at).and_then(|b| char::from(*b).to_digit(16));
    u8::try_from(digit(digits)? * 16 + digit(digits + 1)?).ok()
}

/// Where a character's escapes end, the first of which stood before `at`. `None`: they are no UTF-8.
fn end_of_character(path: &[u8], mut at: usize, lead: u8) -> Option<usize> {
    let mut buffer = [lead, 0, 0, 0];
    let character = buffer.get_mut(..usize::try_from(lead.leading_ones()).ok()?)?;
    for byte in character.iter_mut().skip(1) {
        *byte = escaped(path, at + 1).filter(|_| path.get(at) == Some(&b'%'))?;
        at += 3;
    }
    std::str::from_utf8(character).is_ok().then_some(at)
}

/// Whether the first segment is `.` or `..`. `;` begins parameters of a segment, escaped or not: `/..;/` is `/../` to
/// some.
fn begins_with_dots_alone(path: &[u8]) -> bool {
    let end = |rest: &[u8]| matches!(rest, [] | [b'/' | b';', ..] | [b'%', b'3', b'B' | b'b', ..]);
    matches!(path, [b'.', b'.', rest @ ..] | [b'.', rest @ ..] if end(rest))
}
