//! Where in a file the mutants are, and how a place is written that can be switched to any of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    ops::Range,
};

use anyhow::{Context, Result};
use proc_macro2::LineColumn;
use syn::{
    Arm, BinOp, Block, Expr, ExprBinary, ExprStruct, ExprUnary, ImplItemConst, ImplItemFn, ItemConst, ItemFn,
    ItemStatic, Pat, ReturnType, Signature, TraitItemFn, Type, UnOp,
    spanned::Spanned,
    visit::{self, Visit},
};

use super::list::{Genre, Mutant, Place};

/// The function that tells which mutant is switched on: put into the crate's root.
pub const SWITCH: &str = "
/// Which mutant is switched on.
#[doc(hidden)]
pub mod switches {
    static ON: std::sync::LazyLock<u32> = std::sync::LazyLock::new(|| {
        std::env::var(\"HEDDLE_MUTANT\").ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    });
    /// Its number, or 0.
    pub fn on() -> u32 {
        *ON
    }
}
";
const ON: &str = "crate::switches::on()";
/// A name that the code has not.
const BOUND: &str = "switched_on";

/// A place with the mutants that change it.
struct Site {
    whole: Range<usize>,
    what: What,
    mutants: Vec<Choice>,
}

#[derive(Clone)]
struct Choice {
    number: u32,
    replacement: String,
}

enum What {
    /// `left op right`
    Binary {
        left: Range<usize>,
        right: Range<usize>,
    },
    /// A comparison's `==` or `!=`.
    Equality,
    /// `left && right`, `left || right`
    Logic {
        left: Range<usize>,
        operator: &'static str,
        right: Range<usize>,
    },
    /// `!inner`, `-inner`
    Unary {
        inner: Range<usize>,
    },
    Guard,
    Arm {
        pattern: Range<usize>,
        guard: Option<Range<usize>>,
    },
    Field {
        name: String,
        value: Range<usize>,
        rest: Range<usize>,
    },
    Body,
    /// The body of a function that returns some iterator, of which type only its own text tells.
    Iterator,
    /// The word `const` of a function whose body has a switch.
    Const,
}

/// A file with its mutants' places.
pub struct Switched<'a> {
    text: &'a str,
    sites: Vec<Site>,
}

impl<'a> Switched<'a> {
    /// Finds the places of `mutants` (each with its number) in a file.
    ///
    /// # Errors
    /// When the file is not Rust.
    pub fn new(text: &'a str, mutants: &[(u32, &Mutant)]) -> Result<Self> {
        let file = syn::parse_file(text).context("cannot be read as Rust")?;
        let mut wanted: BTreeMap<(&str, Place), Vec<Choice>> = BTreeMap::new();
        for (number, mutant) in mutants {
            let choice = Choice { number: *number, replacement: mutant.replacement.clone() };
            wanted.entry((sort(mutant.genre), mutant.span.start)).or_default().push(choice);
        }
        let mut finder = Finder { places: Places::new(text), wanted, sites: Vec::new() };
        finder.visit_file(&file);
        let mut sites = finder.sites;
        sites.sort_by_key(|site| (site.whole.start, std::cmp::Reverse(site.whole.end)));
        Ok(Self { text, sites })
    }

    /// The mutants that have a place.
    pub fn numbers(&self) -> BTreeSet<u32> {
        self.sites.iter().flat_map(|site| &site.mutants).map(|choice| choice.number).collect()
    }

    /// The file with a switch in each place; without the mutants in `but`.
    pub fn render(mut self, but: &BTreeSet<u32>) -> String {
        for site in &mut self.sites {
            site.mutants.retain(|choice| !but.contains(&choice.number));
        }
        self.sites.retain(|site| matches!(site.what, What::Const) || !site.mutants.is_empty());
        self.range(0..self.text.len(), 0)
    }

    /// A part of the file, with the switches from the `from`th on that lie in it.
    fn range(&self, range: Range<usize>, from: usize) -> String {
        let (mut out, mut at) = (String::new(), range.start);
        for (index, site) in self.sites.iter().enumerate().skip(from) {
            if site.whole.start >= range.end {
                break;
            }
            if site.whole.start < at || site.whole.end > range.end {
                continue;
            }
            out.push_str(&self.text[at..site.whole.start]);
            out.push_str(&self.site(site, index + 1));
            at = site.whole.end;
        }
        out.push_str(&self.text[at..range.end]);
        out
    }

    fn site(&self, site: &Site, next: usize) -> String {
        let part = |range: &Range<usize>| self.range(range.clone(), next);
        let original = part(&site.whole);
        let numbers: Vec<String> = site.mutants.iter().map(|it| it.number.to_string()).collect();
        let any = || -> String {
            let tests: Vec<String> = numbers.iter().map(|it| format!("{ON} == {it}")).collect();
            format!("({})", tests.join(" || "))
        };
        let choose = |replaced: &dyn Fn(&Choice) -> String| {
            let mut out = format!(
                "(match {ON} {{ {BOUND} if !matches!({BOUND}, {}) => {original},",
                numbers.join(" | ")
            );
            for (index, choice) in site.mutants.iter().enumerate() {
                let last = index + 1 == site.mutants.len();
                let pattern = if last { "_".to_owned() } else { choice.number.to_string() };
                let _ = write!(out, " {pattern} => {},", marked(choice.number, &replaced(choice)));
            }
            out.push_str(" })");
            out
        };
        let rendered = match &site.what {
            What::Const => return String::new(),
            What::Equality => format!("(({original}) != {})", any()),
            What::Logic { left, operator, right } => {
                let (left, right, on) = (part(left), part(right), any());
                format!("((({left}) != {on} {operator} ({right}) != {on}) != {on})")
            }
            What::Binary { left, right } => {
                choose(&|choice| format!("({}) {} ({})", part(left), choice.replacement, part(right)))
            }
            What::Unary { inner } => choose(&|_| part(inner)),
            What::Guard => choose(&|choice| choice.replacement.clone()),
            What::Field { name, value, rest } => {
                let numbers = numbers.join(" | ");
                let (value, rest) = (part(value), part(rest));
                format!(
                    "{name}: (match {ON} {{ {BOUND} if !matches!({BOUND}, {numbers}) => {value}, _ => ({rest}).{name} }})"
                )
            }
            What::Arm { pattern, guard } => {
                let guard = guard.as_ref().map_or(String::new(), |guard| format!(" && ({})", part(guard)));
                format!("{} if !{}{guard}", part(pattern), any())
            }
            What::Body => {
                let mut out = format!("match {ON} {{");
                for choice in &site.mutants {
                    let returned = marked(choice.number, &format!("return {}", choice.replacement));
                    let _ = write!(out, " {} => {{ {returned}; }}", choice.number);
                }
                format!("{out} _ => {{}} }}\n{original}")
            }
            What::Iterator => {
                let mut out = format!("let chosen: Box<dyn Iterator<Item = _> + '_> = match {ON} {{");
                for choice in &site.mutants {
                    let chosen = marked(choice.number, &format!("Box::new({})", choice.replacement));
                    let _ = write!(out, " {} => {chosen},", choice.number);
                }
                format!("{out} _ => Box::new({{ {original} }}) }};\nchosen")
            }
        };
        site.mutants.iter().fold(rendered, |text, it| marked_site(it.number, &text))
    }
}

/// The text of one mutant.
fn marked(number: u32, text: &str) -> String {
    format!("/*<m{number}*/{text}/*m{number}>*/")
}

/// All of a place.
fn marked_site(number: u32, text: &str) -> String {
    format!("/*<s{number}*/{text}/*s{number}>*/")
}

/// Whom an error at `at` in a switched file is about.
pub enum Blame {
    /// This mutant's own text.
    Mutant(u32),
    /// The place where these mutants are, rather than one of them.
    Site(BTreeSet<u32>),
    /// What no mutant stands in.
    Nobody,
}

/// Finds the innermost place around `at`.
pub fn blame(text: &str, at: usize) -> Blame {
    let mut open: Vec<(char, u32)> = Vec::new();
    let before = text.get(..at).unwrap_or(text);
    let mut rest = before;
    while let Some(start) = rest.find("/*") {
        let Some(length) = rest[start..].find("*/") else { break };
        let comment = &rest[start + 2..start + length];
        if let Some((kind, number)) = comment.strip_prefix('<').and_then(mark) {
            open.push((kind, number));
        } else if comment.strip_suffix('>').and_then(mark).is_some() {
            open.pop();
        }
        rest = &rest[start + length + 2..];
    }
    match open.last() {
        None => Blame::Nobody,
        Some(('m', number)) => Blame::Mutant(*number),
        Some(_) => {
            // The marks of a place stand one within the other.
            let innermost = open.iter().rev().take_while(|(kind, _)| *kind == 's').map(|(_, number)| *number);
            let mut numbers: Vec<u32> = innermost.collect();
            let together = numbers.windows(2).take_while(|pair| pair[0] + 1 == pair[1]).count();
            numbers.truncate(together + 1);
            Blame::Site(numbers.into_iter().collect())
        }
    }
}

fn mark(text: &str) -> Option<(char, u32)> {
    let kind = text.chars().next().filter(|kind| matches!(kind, 'm' | 's'))?;
    Some((kind, text[1..].parse().ok()?))
}

/// Places of different sorts may begin at the same character.
fn sort(genre: Genre) -> &'static str {
    match genre {
        Genre::FnValue => "body",
        Genre::BinaryOperator | Genre::UnaryOperator => "operator",
        Genre::MatchArmGuard => "guard",
        Genre::MatchArm => "arm",
        Genre::StructField => "field",
        Genre::Other => "other",
    }
}

/// Where each line begins.
struct Places<'a> {
    text: &'a str,
    lines: Vec<usize>,
}

impl<'a> Places<'a> {
    fn new(text: &'a str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, lines }
    }
    fn at(&self, place: LineColumn) -> usize {
        let line = self.lines.get(place.line.saturating_sub(1)).copied().unwrap_or(self.text.len());
        let within = &self.text[line..];
        line + within.char_indices().nth(place.column).map_or(within.len(), |(at, _)| at)
    }
    fn of(&self, spanned: &impl Spanned) -> Range<usize> {
        let span = spanned.span();
        self.at(span.start())..self.at(span.end())
    }
}

struct Finder<'a> {
    places: Places<'a>,
    wanted: BTreeMap<(&'static str, Place), Vec<Choice>>,
    sites: Vec<Site>,
}

impl Finder<'_> {
    fn take(&mut self, sort: &'static str, spanned: &impl Spanned) -> Option<Vec<Choice>> {
        let start = spanned.span().start();
        self.wanted.remove(&(sort, Place { line: start.line, column: start.column + 1 }))
    }
    fn add(&mut self, whole: Range<usize>, what: What, mutants: Option<Vec<Choice>>) {
        if let Some(mutants) = mutants {
            self.sites.push(Site { whole, what, mutants });
        }
    }
    /// A function; `true` if something in it was given a switch.
    fn function(&mut self, signature: &Signature, block: &Block, walk: impl FnOnce(&mut Self)) {
        let before = self.sites.len();
        if let (Some(first), Some(last)) = (block.stmts.first(), block.stmts.last()) {
            let whole = self.places.of(first).start..self.places.of(last).end;
            let mutants = self.take("body", first);
            let what = match &signature.output {
                ReturnType::Type(_, returned) if matches!(**returned, Type::ImplTrait(_)) => What::Iterator,
                _ => What::Body,
            };
            self.add(whole, what, mutants);
        }
        walk(self);
        if let Some(word) = &signature.constness
            && self.sites.len() > before
        {
            self.sites.push(Site { whole: self.places.of(word), what: What::Const, mutants: Vec::new() });
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        self.function(&item.sig, &item.block, |it| visit::visit_item_fn(it, item));
    }
    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        self.function(&item.sig, &item.block, |it| visit::visit_impl_item_fn(it, item));
    }
    fn visit_trait_item_fn(&mut self, item: &'ast TraitItemFn) {
        match &item.default {
            Some(block) => self.function(&item.sig, block, |it| visit::visit_trait_item_fn(it, item)),
            None => visit::visit_trait_item_fn(self, item),
        }
    }
    // What the compiler works out cannot be switched.
    fn visit_item_const(&mut self, _: &'ast ItemConst) {}
    fn visit_impl_item_const(&mut self, _: &'ast ImplItemConst) {}
    fn visit_item_static(&mut self, _: &'ast ItemStatic) {}

    fn visit_expr_binary(&mut self, item: &'ast ExprBinary) {
        let (left, right) = (self.places.of(&item.left), self.places.of(&item.right));
        let whole = left.start..right.end;
        let logic = |operator| What::Logic { left: left.clone(), operator, right: right.clone() };
        let what = match item.op {
            BinOp::Eq(_) | BinOp::Ne(_) => Some(What::Equality),
            // A chain with a `let` has no other operator.
            BinOp::And(_) if has_let(&item.left) || has_let(&item.right) => None,
            BinOp::And(_) => Some(logic("&&")),
            BinOp::Or(_) => Some(logic("||")),
            _ => Some(What::Binary { left, right }),
        };
        if let Some(what) = what {
            let mutants = self.take("operator", &item.op);
            self.add(whole, what, mutants);
        }
        visit::visit_expr_binary(self, item);
    }
    fn visit_expr_unary(&mut self, item: &'ast ExprUnary) {
        if matches!(item.op, UnOp::Not(_) | UnOp::Neg(_)) {
            let inner = self.places.of(&item.expr);
            let whole = self.places.of(&item.op).start..inner.end;
            let mutants = self.take("operator", &item.op);
            self.add(whole, What::Unary { inner }, mutants);
        }
        visit::visit_expr_unary(self, item);
    }
    fn visit_arm(&mut self, item: &'ast Arm) {
        let (pattern, guard) = match &item.pat {
            Pat::Guard(guarded) => (&*guarded.pat, Some(&*guarded.guard)),
            pattern => (pattern, None),
        };
        let (pattern, range) = (self.places.of(pattern), guard.map(|guard| self.places.of(guard)));
        if !guard.is_some_and(has_let) {
            let mutants = self.take("arm", item);
            let whole = pattern.start..range.as_ref().map_or(pattern.end, |guard| guard.end);
            self.add(whole, What::Arm { pattern, guard: range.clone() }, mutants);
            if let (Some(guard), Some(range)) = (guard, range) {
                let mutants = self.take("guard", guard);
                self.add(range, What::Guard, mutants);
            }
        }
        visit::visit_arm(self, item);
    }
    fn visit_expr_struct(&mut self, item: &'ast ExprStruct) {
        if let Some(rest) = &item.rest {
            for field in &item.fields {
                let mutants = self.take("field", field);
                let name = self.places.text[self.places.of(&field.member)].to_owned();
                let what =
                    What::Field { name, value: self.places.of(&field.expr), rest: self.places.of(rest) };
                self.add(self.places.of(field), what, mutants);
            }
        }
        visit::visit_expr_struct(self, item);
    }
}

fn has_let(expression: &Expr) -> bool {
    match expression {
        Expr::Let(_) => true,
        Expr::Binary(it) => has_let(&it.left) || has_let(&it.right),
        _ => false,
    }
}
