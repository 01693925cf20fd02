//! Paths that mean one thing to everybody.

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
    /// A percent sign without two digits, an escaped percent sign, or an escaped letter or digit.
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
                let digit = |offset: usize| bytes.get(at + offset).and_then(|b| char::from(*b).to_digit(16));
                let (Some(high), Some(low)) = (digit(0), digit(1)) else { return Err(BadPath::BadEscape) };
                at += 2;
                match u8::try_from(high * 16 + low).unwrap_or(0) {
                    b'/' | b'\\' => return Err(BadPath::HiddenSlash),
                    0..=0x1f | 0x7f => return Err(BadPath::BadCharacter),
                    // Characters that never need to be escaped: escaped they hide from one reader and not from another.
                    b'%' | b'.' | b'-' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                        return Err(BadPath::BadEscape);
                    }
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

/// Whether the first segment is `.` or `..`. `;` begins parameters of a segment: `/..;/` is `/../` to some.
fn begins_with_dots_alone(path: &[u8]) -> bool {
    let end = |byte: Option<&u8>| matches!(byte, None | Some(b'/' | b';'));
    matches!(path, [b'.', b'.', rest @ ..] | [b'.', rest @ ..] if end(rest.first()))
}
