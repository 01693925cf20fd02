use super::find;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn crate_of(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join("src").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn circles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let folder = crate_of(files);
    let source = folder.path().join("src");
    let name = |path: &Path| path.strip_prefix(&source).unwrap().to_str().unwrap().to_owned();
    let found = find(&[folder.path().to_owned()]).unwrap();
    found.iter().map(|circle| circle.iter().map(|path| name(path)).collect()).collect()
}

#[test]
fn imports_that_run_one_way_are_fine() {
    let files = [
        ("lib.rs", "pub mod a; pub mod b; pub use a::A;"),
        ("a.rs", "pub struct A;"),
        ("b.rs", "use crate::a::A; use crate::Other; pub struct B(A);"),
    ];
    assert!(circles(&files).is_empty());
}

#[test]
fn two_modules_that_import_each_other_are_found() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::{b::{self, B}}; pub struct A;"),
        ("b.rs", "pub struct B; pub fn f() { let _ = super::a::A; }"),
    ];
    assert_eq!(circles(&files), [["a.rs", "b.rs"]]);
}

#[test]
fn a_circle_through_folders_is_found() {
    let files = [
        ("main.rs", "mod x; mod y; mod z;"),
        ("x/mod.rs", "pub mod deep;"),
        ("x/deep.rs", "fn f(v: crate::y::Y) {}"),
        ("y.rs", "pub use crate::z::*; pub struct Y;"),
        ("z.rs", "pub fn g() { crate::x::deep::f() }"),
    ];
    assert_eq!(circles(&files), [["x/deep.rs", "y.rs", "z.rs"]]);
}

#[test]
fn a_folder_that_imports_from_its_part_must_not_be_imported_by_it() {
    let part = ("x/part.rs", "use super::Shared; pub fn g() {}");
    let root = ("lib.rs", "mod x;");
    let holds = ("x/mod.rs", "mod part; pub struct Shared; pub fn f() { part::g() }");
    assert!(circles(&[root, holds, part]).is_empty());
    let imports = ("x/mod.rs", "mod part; use self::part::g; pub struct Shared; pub fn f() { g() }");
    assert_eq!(circles(&[root, imports, part]), [["x/mod.rs", "x/part.rs"]]);
}

#[test]
fn tests_comments_and_text_import_nothing() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::B; pub struct A(B);"),
        (
            "b.rs",
            "// crate::a::A\n pub struct B; pub const T: &str = \"crate::a::A\";\n\
             #[cfg(test)] mod tests { use crate::a::A; }\n #[cfg(all(test, unix))] mod more { use crate::a::A; }",
        ),
        ("a/tests.rs", "use crate::b::B;"),
    ];
    assert!(circles(&files).is_empty());
}

#[test]
fn a_file_that_does_not_parse_is_an_error() {
    let folder = crate_of(&[("lib.rs", "mod {")]);
    assert!(find(&[folder.path().to_owned()]).is_err());
}
