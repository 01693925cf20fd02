//! What a source file refers to: the paths in its `use` items, expressions, types and patterns that lie in its own crate.

use std::collections::BTreeSet;
use syn::visit::{self, Visit};
use syn::{Attribute, File, ItemMod, ItemUse, Path, UseTree};

/// The crate's paths that `file`, which is `module`, names, from the crate's root.
pub fn of(file: &File, module: &[String]) -> BTreeSet<Vec<String>> {
    let mut collector = Collector { module: module.to_vec(), found: BTreeSet::new() };
    collector.visit_file(file);
    collector.found
}

struct Collector {
    module: Vec<String>,
    found: BTreeSet<Vec<String>>,
}

impl Collector {
    fn note(&mut self, names: &[String]) {
        let Some(first) = names.first() else { return };
        let (mut base, rest) = match first.as_str() {
            "crate" => (Vec::new(), &names[1..]),
            "self" => (self.module.clone(), &names[1..]),
            "super" => (self.module.clone(), names),
            // Another crate's, or a part of this module's own: holding a part is no import of it.
            _ => return,
        };
        let mut rest = rest;
        while rest.first().is_some_and(|name| name == "super") {
            base.pop();
            rest = &rest[1..];
        }
        base.extend_from_slice(rest);
        self.found.insert(base);
    }

    fn tree(&mut self, tree: &UseTree, before: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => self.leaf(before, &name.ident.to_string()),
            UseTree::Rename(rename) => self.leaf(before, &rename.ident.to_string()),
            UseTree::Glob(_) => self.note(before),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(item, before)),
        }
    }

    fn leaf(&mut self, before: &[String], name: &str) {
        let mut names = before.to_vec();
        if name != "self" {
            names.push(name.to_owned());
        }
        self.note(&names);
    }
}

impl Visit<'_> for Collector {
    fn visit_item_use(&mut self, item: &ItemUse) {
        self.tree(&item.tree, &mut Vec::new());
    }

    fn visit_item_mod(&mut self, item: &ItemMod) {
        if for_tests(&item.attrs) {
            return;
        }
        // Inside `mod x { … }`, `super` is this file.
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_path(&mut self, path: &Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if path.leading_colon.is_none() && names.len() > 1 {
            self.note(&names);
        }
        visit::visit_path(self, path);
    }

    // `pub(in crate::x)` gives access and imports nothing.
    fn visit_visibility(&mut self, _: &syn::Visibility) {}
}

/// Whether `#[cfg(test)]` or `#[cfg(all(test, …))]` stands before an item.
fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let mut test = false;
        if attribute.path().is_ident("cfg") {
            // Conditions other than `test` and `all(…)` end the parse early, which leaves `test` as it was.
            let _ = attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("all") {
                    return meta.parse_nested_meta(|inner| {
                        test |= inner.path.is_ident("test");
                        Ok(())
                    });
                }
                test |= meta.path.is_ident("test");
                Ok(())
            });
        }
        test
    })
}
