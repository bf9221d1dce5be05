//! The format of a flattened device tree: Devicetree Specification 0.4, chapter 5.
//!
//! [`Fdt::new`] reads every token once, so that all later reading, of the same tokens by the same code, meets no error.

use core::ffi::CStr;
use core::iter;

use arrayvec::ArrayVec;

use super::MAX_DEPTH;

/// Why bytes are no device tree, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("device tree, offset {offset:#x}: {problem}")]
pub struct TreeError {
    /// Bytes from the start of the tree.
    pub offset: usize,
    /// What is wrong there.
    pub problem: TreeProblem,
}

/// Why bytes are no device tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeProblem {
    /// It ends in the middle of something.
    #[error("it is cut off")]
    Cut,
    /// It does not begin with the magic number 0xd00dfeed.
    #[error("{0:#x} is not the magic number")]
    Magic(u32),
    /// Version 17 cannot be read from it.
    #[error("version {0}, compatible down to {1}, is not version 17")]
    Version(u32, u32),
    /// The structure or strings block is outside, or the former not at a multiple of 4.
    #[error("a block of {size:#x} bytes at {start:#x} is outside, or not at a multiple of 4")]
    Block {
        /// Where it begins.
        start: u32,
        /// Bytes.
        size: u32,
    },
    /// A token that is none, or not one that may be here.
    #[error("the token {0:#x} has no place here")]
    Token(u32),
    /// A name is empty, has no end, or is no text.
    #[error("the name is empty, has no end, or is no text")]
    Name,
    /// Nodes are nested deeper than [`MAX_DEPTH`].
    #[error("nodes are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

impl TreeProblem {
    fn at(self, offset: usize) -> TreeError {
        TreeError { offset, problem: self }
    }
}

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

#[derive(Debug, Clone, Copy)]
enum Token<'a> {
    Begin(&'a str),
    Property(&'a str, &'a [u8]),
    EndNode,
    End,
}

impl Token<'_> {
    fn number(self) -> u32 {
        match self {
            Token::Begin(_) => BEGIN_NODE,
            Token::Property(..) => PROPERTY,
            Token::EndNode => END_NODE,
            Token::End => END,
        }
    }
}

/// A device tree whose tokens have been checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fdt<'a> {
    /// The tree up to the end of its structure block. Offsets are from the start of the tree.
    structure: &'a [u8],
    /// Where the structure block begins.
    start: usize,
    strings: &'a [u8],
}

impl<'a> Fdt<'a> {
    /// Checks the tree at the start of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, TreeError> {
        let magic = word(bytes, 0)?;
        if magic != MAGIC {
            return Err(TreeProblem::Magic(magic).at(0));
        }
        let total = word(bytes, 4)? as usize;
        let bytes = bytes.get(..total).ok_or(TreeProblem::Cut.at(bytes.len()))?;
        let (version, oldest) = (word(bytes, 20)?, word(bytes, 24)?);
        if !(oldest..=version).contains(&VERSION) {
            return Err(TreeProblem::Version(version, oldest).at(20));
        }
        let (structure, strings) = (word(bytes, 8)?, word(bytes, 12)?);
        let structure_end = end(bytes, structure, word(bytes, 36)?).filter(|_| structure.is_multiple_of(4));
        let strings_end = end(bytes, strings, word(bytes, 32)?);
        let block = |start, size| Ok(TreeProblem::Block { start, size: word(bytes, size)? }.at(size));
        let Some(structure_end) = structure_end else { return Err(block(structure, 36)?) };
        let Some(strings_end) = strings_end else { return Err(block(strings, 32)?) };
        let fdt = Fdt {
            structure: &bytes[..structure_end],
            start: structure as usize,
            strings: &bytes[strings as usize..strings_end],
        };
        fdt.check()?;
        Ok(fdt)
    }

    /// One root, which is all there is; properties before nodes; an end for each node.
    fn check(&self) -> Result<(), TreeError> {
        let mut at = self.start;
        let mut depth = 0;
        let mut properties_may_follow = false;
        loop {
            let (token, next) = self.token(at)?;
            match token {
                Token::Begin(_) if depth == MAX_DEPTH => return Err(TreeProblem::TooDeep.at(at)),
                Token::Begin(name) if (depth == 0) == name.is_empty() => depth += 1,
                Token::Begin(_) => return Err(TreeProblem::Name.at(at)),
                Token::Property(..) if properties_may_follow => {}
                Token::EndNode if depth > 1 => depth -= 1,
                Token::EndNode if depth == 1 => break at = next,
                _ => return Err(TreeProblem::Token(token.number()).at(at)),
            }
            properties_may_follow = matches!(token, Token::Begin(_) | Token::Property(..));
            at = next;
        }
        match self.token(at)? {
            (Token::End, _) => Ok(()),
            (token, _) => Err(TreeProblem::Token(token.number()).at(at)),
        }
    }

    /// The token at `at`, or behind the NOPs there, and where the next begins.
    fn token(&self, mut at: usize) -> Result<(Token<'a>, usize), TreeError> {
        loop {
            let token = match word(self.structure, at)? {
                NOP => {
                    at += 4;
                    continue;
                }
                BEGIN_NODE => {
                    let name = text(self.structure, at + 4).ok_or(TreeProblem::Name.at(at))?;
                    (Token::Begin(name), (at + 4 + name.len() + 1).next_multiple_of(4))
                }
                PROPERTY => {
                    let (length, name) =
                        (word(self.structure, at + 4)? as usize, word(self.structure, at + 8)? as usize);
                    let name =
                        text(self.strings, name).filter(|name| !name.is_empty()).ok_or(TreeProblem::Name.at(at))?;
                    let value = self.structure[at + 12..].get(..length).ok_or(TreeProblem::Cut.at(at))?;
                    (Token::Property(name, value), (at + 12 + length).next_multiple_of(4))
                }
                END_NODE => (Token::EndNode, at + 4),
                END => (Token::End, at + 4),
                other => return Err(TreeProblem::Token(other).at(at)),
            };
            return Ok(token);
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, TreeError> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map(|word| u32::from_be_bytes(*word)).ok_or(TreeProblem::Cut.at(at))
}

/// The end of a block of `size` bytes at `start`, if it is inside.
fn end(bytes: &[u8], start: u32, size: u32) -> Option<usize> {
    (start as usize).checked_add(size as usize).filter(|end| *end <= bytes.len())
}

/// The string that begins at `at` and ends before a NUL.
fn text(bytes: &[u8], at: usize) -> Option<&str> {
    CStr::from_bytes_until_nul(bytes.get(at..)?).ok()?.to_str().ok()
}

/// A node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'a> {
    fdt: Fdt<'a>,
    /// Where its token is.
    at: usize,
}

impl<'a> Node<'a> {
    /// Empty, of the root.
    pub(super) fn name(&self) -> &'a str {
        match self.fdt.token(self.at) {
            Ok((Token::Begin(name), _)) => name,
            _ => "",
        }
    }

    /// The value of a property.
    pub(super) fn property(&self, name: &str) -> Option<&'a [u8]> {
        let (_, mut at) = self.fdt.token(self.at).ok()?;
        while let (Token::Property(found, value), next) = self.fdt.token(at).ok()? {
            if found == name {
                return Some(value);
            }
            at = next;
        }
        None
    }
}

/// A node and all those above it.
///
/// # Invariants
/// It is not empty. The root is the first.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    fdt: Fdt<'a>,
    path: ArrayVec<usize, MAX_DEPTH>,
}

impl<'a> Place<'a> {
    /// The node and those above it, upwards.
    pub(super) fn upwards(&self) -> impl DoubleEndedIterator<Item = Node<'a>> {
        self.path.iter().rev().map(|at| Node { fdt: self.fdt, at: *at })
    }

    /// The node.
    pub(super) fn node(&self) -> Node<'a> {
        Node { fdt: self.fdt, at: self.path[self.path.len() - 1] }
    }

    /// The node above it; none of the root.
    pub(super) fn parent(&self) -> Option<Node<'a>> {
        self.upwards().nth(1)
    }

    /// Whether `path` leads here: the names of the nodes below the root, each after a slash.
    pub(super) fn is_at(&self, path: &str) -> bool {
        let names = self.upwards().rev().skip(1).map(|node| node.name());
        path.strip_prefix('/').is_some_and(|path| path.split('/').filter(|name| !name.is_empty()).eq(names))
    }
}

/// All nodes of a tree, a node before its children.
pub(super) fn places<'a>(fdt: Fdt<'a>) -> impl Iterator<Item = Place<'a>> {
    let mut at = fdt.start;
    let mut path = ArrayVec::new();
    iter::from_fn(move || {
        loop {
            let (token, next) = fdt.token(at).ok()?;
            match token {
                Token::Begin(_) => {
                    // NOPs may be before it: `Node` steps over them again.
                    path.try_push(at).ok()?;
                    at = next;
                    return Some(Place { fdt, path: path.clone() });
                }
                Token::EndNode => {
                    path.pop();
                }
                Token::Property(..) => {}
                // It stays here.
                Token::End => return None,
            }
            at = next;
        }
    })
}
