//! The modules of a crate as its source files declare them, and which file uses which.
//!
//! What is parsed: `mod`, `use`, and every path in types, expressions, patterns and macros' arguments. A path leads to
//! the file that defines what it names, through re-exports (`pub use`); a re-export alone makes no edge. Left out:
//! methods and fields (their files follow from types, which nothing here knows), items that macros define, and all that
//! is only there for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::{Attribute, File, Item, Meta, UseTree, Visibility};

/// A module: a file of its own, or a part of one.
#[derive(Debug, Default)]
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// What `use` brings in: a name, and the path behind it.
    imports: Vec<Import>,
    items: BTreeSet<String>,
    paths: Vec<Vec<String>>,
    words: BTreeSet<String>,
}

#[derive(Debug)]
struct Import {
    /// `None` is a glob.
    name: Option<String>,
    path: Vec<String>,
    is_public: bool,
}

/// A crate's modules.
#[derive(Debug, Default)]
pub struct Modules(Vec<Module>);

impl Modules {
    /// Reads the crate whose root is `root`, and all files that it declares.
    ///
    /// # Panics
    /// A file cannot be read or is no Rust.
    pub fn of(root: &Path) -> Modules {
        let mut modules = Modules::default();
        modules.0.push(Module { file: root.to_owned(), ..Module::default() });
        let directory = root.parent().unwrap().to_owned();
        modules.read_file(0, &directory);
        modules
    }

    fn read_file(&mut self, module: usize, directory: &Path) {
        let file = self.0[module].file.clone();
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let File { items, .. } =
            syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.read_items(module, items, directory);
    }

    fn read_items(&mut self, module: usize, items: Vec<Item>, directory: &Path) {
        for item in items {
            if is_for_tests(attributes(&item)) {
                continue;
            }
            match item {
                Item::Mod(declared) => {
                    let name = plain(&declared.ident.to_string());
                    let below = directory.join(&name);
                    let child = self.0.len();
                    self.0[module].children.insert(name.clone(), child);
                    let inner = Module { parent: Some(module), ..Module::default() };
                    match declared.content {
                        Some((_, items)) => {
                            let file = self.0[module].file.clone();
                            self.0.push(Module { file, ..inner });
                            self.read_items(child, items, &below);
                        }
                        None => {
                            let file = [directory.join(format!("{name}.rs")), below.join("mod.rs")]
                                .into_iter()
                                .find(|file| file.exists());
                            let file = file.unwrap_or_else(|| panic!("no file of {}", below.display()));
                            self.0.push(Module { file, ..inner });
                            self.read_file(child, &below);
                        }
                    }
                }
                Item::Use(import) => {
                    let is_public = !matches!(import.vis, Visibility::Inherited);
                    let mut imports = Vec::new();
                    flatten(&import.tree, &mut Vec::new(), &mut |name, path| {
                        imports.push(Import { name, path, is_public });
                    });
                    self.0[module].imports.extend(imports);
                }
                item => {
                    if let Some(name) = name_of(&item) {
                        self.0[module].items.insert(name);
                    }
                    let mut tokens = TokenStream::new();
                    quote::ToTokens::to_tokens(&item, &mut tokens);
                    self.0[module].read_tokens(tokens);
                }
            }
        }
    }

    /// Which file uses what of which other one: the name that leads there.
    pub fn edges(&self) -> BTreeMap<(PathBuf, PathBuf), BTreeSet<String>> {
        let mut edges: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for (at, module) in self.0.iter().enumerate() {
            let imports = module.imports.iter().filter(|import| {
                // A re-export that the file does not use itself only passes a name on.
                let is_used = import.name.as_ref().is_some_and(|name| module.words.contains(name));
                !import.is_public || is_used
            });
            let paths = imports.map(|import| &import.path).chain(&module.paths);
            for path in paths {
                let (from, targets) = (&module.file, self.resolve(at, path, 0));
                for to in targets.into_iter().map(|target| &self.0[target].file).filter(|to| *to != from) {
                    edges.entry((from.clone(), to.clone())).or_default().insert(path.join("::"));
                }
            }
        }
        edges
    }

    /// The module that defines what `path` names, seen from `module`; none if it is of another crate. Several where the name
    /// is brought in more than once, as by an architecture each.
    fn resolve(&self, module: usize, path: &[String], depth: usize) -> Vec<usize> {
        let Some((first, rest)) = path.split_first() else { return Vec::new() };
        match first.as_str() {
            "crate" => self.descend(0, rest, depth),
            "self" => self.descend(module, rest, depth),
            "super" => match self.0[module].parent {
                Some(parent) if rest.first().is_some_and(|name| name == "super") => {
                    self.resolve(parent, rest, depth)
                }
                Some(parent) => self.descend(parent, rest, depth),
                None => Vec::new(),
            },
            first => {
                let here = &self.0[module];
                if here.children.contains_key(first) || here.items.contains(first) {
                    return self.descend(module, path, depth);
                }
                self.imported(module, first, rest, depth)
            }
        }
    }

    /// What the imports of `name` lead to, with `rest` behind it.
    fn imported(&self, module: usize, name: &str, rest: &[String], depth: usize) -> Vec<usize> {
        if depth > 16 {
            return Vec::new();
        }
        let imports = self.0[module].imports.iter().filter(|import| import.name.as_deref() == Some(name));
        let paths = imports.map(|import| import.path.iter().chain(rest).cloned().collect::<Vec<_>>());
        paths.flat_map(|path| self.resolve(module, &path, depth + 1)).collect()
    }

    fn descend(&self, module: usize, path: &[String], depth: usize) -> Vec<usize> {
        let here = &self.0[module];
        let Some((first, rest)) = path.split_first() else { return vec![module] };
        if let Some(&child) = here.children.get(first) {
            return self.descend(child, rest, depth);
        }
        if here.items.contains(first) || depth > 16 {
            return vec![module];
        }
        if here.imports.iter().any(|import| import.name.as_ref() == Some(first)) {
            return self.imported(module, first, rest, depth);
        }
        let globs = here.imports.iter().filter(|import| import.name.is_none());
        let targets = globs.flat_map(|glob| self.resolve(module, &glob.path, depth + 1));
        let found: Vec<_> = targets
            .filter(|&target| target != module && self.0[target].has(first))
            .flat_map(|target| self.descend(target, path, depth + 1))
            .collect();
        if found.is_empty() { vec![module] } else { found }
    }
}

impl Module {
    /// Whether a glob of it brings `name` in.
    fn has(&self, name: &String) -> bool {
        let is_passed_on = |import: &Import| import.is_public && import.name.as_ref() == Some(name);
        self.items.contains(name) || self.children.contains_key(name) || self.imports.iter().any(is_passed_on)
    }

    /// All paths and words in tokens: macros' arguments too, which have no other structure.
    fn read_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    let word = plain(&ident.to_string());
                    self.words.insert(word.clone());
                    if colons != 2 {
                        self.end(&mut path);
                    }
                    path.push(word);
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end(&mut path);
                    colons = 0;
                    self.read_tokens(group.stream());
                }
                _ => {
                    self.end(&mut path);
                    colons = 0;
                }
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Vec<String>) {
        let path = std::mem::take(path);
        // A word alone is what an import or this file names.
        if path.len() > 1 {
            self.paths.push(path);
        }
    }
}

fn flatten(tree: &UseTree, before: &mut Vec<String>, found: &mut impl FnMut(Option<String>, Vec<String>)) {
    match tree {
        UseTree::Path(path) => {
            before.push(plain(&path.ident.to_string()));
            flatten(&path.tree, before, found);
            before.pop();
        }
        UseTree::Name(name) => {
            let name = plain(&name.ident.to_string());
            let name_here = if name == "self" { before.last().cloned() } else { Some(name.clone()) };
            let last = (name != "self").then_some(name);
            found(name_here, before.iter().cloned().chain(last).collect());
        }
        UseTree::Rename(rename) => {
            let path = before.iter().cloned().chain([plain(&rename.ident.to_string())]);
            found(Some(plain(&rename.rename.to_string())), path.filter(|part| part != "self").collect());
        }
        UseTree::Glob(_) => found(None, before.clone()),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, found)),
    }
}

/// `#[test]`, or `#[cfg(...)]` with `test` in it.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        Meta::NameValue(_) => false,
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(plain(&name.to_string()))
}

fn plain(name: &str) -> String {
    name.trim_start_matches("r#").to_owned()
}
