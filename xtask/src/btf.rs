//! Text in maps. Rust has no type that becomes C's `char`; its `i8` becomes a signed integer, and bpftool then prints a
//! name as a list of numbers. In the finished object every `i8` is made a `char`, which it prints as a string.

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
/// The data word of a BTF integer: 8 bits at offset 0, signed.
const SIGNED_BYTE: u32 = 0x0100_0008;
/// The same, a character.
const CHAR_BYTE: u32 = 0x0200_0008;

/// Makes each integer type `i8` in the object's `.BTF` a `char`. Returns how many there were.
pub fn mark_text(object: &mut [u8]) -> Result<usize> {
    let file = object::File::parse(&*object).context("not an ELF object")?;
    if !file.is_little_endian() {
        bail!("the object is big-endian");
    }
    let section = file.section_by_name(".BTF").context("no section .BTF: was it linked with --btf?")?;
    let (offset, size) = section.file_range().context("the section .BTF is empty")?;
    let (offset, size) = (usize::try_from(offset)?, usize::try_from(size)?);
    let end = offset.checked_add(size).context("the section .BTF ends nowhere")?;
    let btf = object.get_mut(offset..end).context("the section .BTF lies outside the file")?;
    mark_types(btf)
}

fn mark_types(btf: &mut [u8]) -> Result<usize> {
    if word(btf, 0)? & 0xffff != u32::from(MAGIC) {
        bail!("the section .BTF does not start with BTF's magic");
    }
    let header = word(btf, 4)? as usize;
    let start = header + word(btf, 8)? as usize;
    let end = start + word(btf, 12)? as usize;
    let strings = header + word(btf, 16)? as usize;
    let mut at = start;
    let mut marked = 0;
    while at < end {
        let (name, info) = (word(btf, at)?, word(btf, at + 4)?);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        if kind == KIND_INT
            && word(btf, at + 12)? == SIGNED_BYTE
            && is_named(btf, strings + name as usize, b"i8")
        {
            btf[at + 12..at + 16].copy_from_slice(&CHAR_BYTE.to_le_bytes());
            marked += 1;
        }
        at += 12 + extra(kind, members)?;
    }
    Ok(marked)
}

/// How many bytes follow the 12 that each type has.
fn extra(kind: u32, members: usize) -> Result<usize> {
    Ok(match kind {
        // An integer, a variable, a declaration's tag.
        KIND_INT | 14 | 17 => 4,
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // An array.
        3 => 12,
        // Structure, union, data section, 64-bit enumeration.
        4 | 5 | 15 | 19 => 12 * members,
        // Enumeration, a function's prototype.
        6 | 13 => 8 * members,
        unknown => bail!("a type of the unknown kind {unknown} in .BTF"),
    })
}

fn word(btf: &[u8], at: usize) -> Result<u32> {
    let bytes = btf.get(at..at + 4).with_context(|| format!("the section .BTF is cut short at byte {at}"))?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn is_named(btf: &[u8], at: usize, name: &[u8]) -> bool {
    btf.get(at..).is_some_and(|rest| rest.starts_with(name) && rest.get(name.len()) == Some(&0))
}

#[cfg(test)]
mod tests {
    use super::{CHAR_BYTE, SIGNED_BYTE, mark_types, word};

    /// BTF of: struct pair { i8; i8 } (to be stepped over), then the integers `i8`, `i8x` and `u8`.
    fn sample() -> Vec<u8> {
        let strings = b"\0i8\0i8x\0u8\0";
        let mut types: Vec<u32> = vec![0, 4 << 24 | 2, 2, 0, 2, 0, 0, 2, 8];
        for (name, data) in [(1, SIGNED_BYTE), (4, SIGNED_BYTE), (8, 8)] {
            types.extend([name, 1 << 24, 1, data]);
        }
        let length = 4 * types.len() as u32;
        let mut words = vec![0x0001_eb9f, 24, 0, length, length, strings.len() as u32];
        words.extend(types);
        let mut btf: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        btf.extend(strings);
        btf
    }

    const FIRST_INT: usize = 24 + 36;

    #[test]
    fn only_the_integer_named_i8_becomes_a_char() {
        let mut btf = sample();
        assert_eq!(mark_types(&mut btf).unwrap(), 1);
        let data: Vec<u32> = (0..3).map(|n| word(&btf, FIRST_INT + 16 * n + 12).unwrap()).collect();
        assert_eq!(data, [CHAR_BYTE, SIGNED_BYTE, 8]);
        assert_eq!(mark_types(&mut btf).unwrap(), 0, "a second pass finds nothing left to do");
    }

    #[test]
    fn damaged_btf_is_refused() {
        let mut wrong_magic = sample();
        wrong_magic[0] = 0;
        assert!(mark_types(&mut wrong_magic).is_err());
        let mut short = sample();
        short.truncate(FIRST_INT + 14);
        assert!(mark_types(&mut short).is_err());
        let mut unknown = sample();
        unknown[24 + 7] = 31;
        assert!(mark_types(&mut unknown).is_err());
    }
}
