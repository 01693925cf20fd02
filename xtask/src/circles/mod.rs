//! No two modules import each other. Each crate's files are read, their imports drawn as a graph, and every circle in
//! it is an error: what a file needs must be readable before the file. An import is a path that starts with `crate`,
//! `super` or `self`; a module that calls a part of its own by the part's name holds it and does not import it.

mod imports;

use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module by its names from the crate's root.
type ModulePath = Vec<String>;

/// Files that import each other, shown by their paths.
pub type Circle = Vec<PathBuf>;

/// Finds the circles among the files of each crate in `crates` (folders that hold a Cargo.toml).
pub fn find(crates: &[PathBuf]) -> Result<Vec<Circle>> {
    let mut circles = Vec::new();
    for folder in crates {
        circles.extend(find_in(&folder.join("src"))?);
    }
    Ok(circles)
}

fn find_in(source: &Path) -> Result<Vec<Circle>> {
    let mut files: BTreeMap<ModulePath, PathBuf> = BTreeMap::new();
    collect(source, &mut Vec::new(), &mut files)?;
    let known: BTreeSet<&ModulePath> = files.keys().collect();
    let mut graph: BTreeMap<&Path, BTreeSet<&Path>> = BTreeMap::new();
    for (module, file) in &files {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let parsed = syn::parse_file(&text).with_context(|| format!("{} does not parse", file.display()))?;
        let edges = graph.entry(file).or_default();
        for named in imports::of(&parsed, module) {
            // The longest part of the path that is a file; the rest is what it defines. The root itself, which
            // re-exports, is nobody's import.
            let target =
                (1..=named.len()).rev().map(|n| named[..n].to_vec()).find(|path| known.contains(path));
            if let Some(target) =
                target.and_then(|target| files.get(&target)).filter(|target| *target != file)
            {
                edges.insert(target);
            }
        }
    }
    Ok(components(&graph))
}

/// Every source file with its module path; test modules are left out, they may look at everything.
fn collect(folder: &Path, module: &mut ModulePath, files: &mut BTreeMap<ModulePath, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned) else { continue };
        if stem == "tests" || stem == "bin" {
            continue;
        }
        if path.is_dir() {
            module.push(stem);
            collect(&path, module, files)?;
            module.pop();
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let mut name = module.clone();
            match stem.as_str() {
                "mod" => {}
                // A binary beside a library is a crate of its own, with nothing below it.
                "main" if folder.join("lib.rs").exists() => name.push("main".to_owned()),
                "lib" | "main" => {}
                _ => name.push(stem),
            }
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The groups of more than one file in which each can be reached from each.
fn components<'a>(graph: &BTreeMap<&'a Path, BTreeSet<&'a Path>>) -> Vec<Circle> {
    let reach: BTreeMap<&Path, BTreeSet<&Path>> =
        graph.keys().map(|from| (*from, reachable(graph, from))).collect();
    let mut circles: Vec<Circle> = Vec::new();
    for (file, reached) in &reach {
        if !reached.contains(file) || circles.iter().any(|circle| circle.iter().any(|member| member == file))
        {
            continue;
        }
        let together = |other: &&&Path| reach.get(**other).is_some_and(|back| back.contains(file));
        circles.push(reached.iter().filter(together).map(|path| path.to_path_buf()).collect());
    }
    circles
}

fn reachable<'a>(graph: &BTreeMap<&'a Path, BTreeSet<&'a Path>>, from: &Path) -> BTreeSet<&'a Path> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&Path> = graph.get(from).into_iter().flatten().copied().collect();
    while let Some(file) = open.pop() {
        if seen.insert(file) {
            open.extend(graph.get(file).into_iter().flatten());
        }
    }
    seen
}

#[cfg(test)]
mod tests;
