//! Who holds which blocks of keys and values, and which of them begin a prompt that was seen before.
//!
//! Pure bookkeeping over block numbers. A sequence holds a path of nodes (full blocks that a radix tree knows by their
//! tokens and may share) and then blocks of its own, the last of them not full. The tree (after SGLang's RadixAttention,
//! arXiv 2312.07104) has one edge a block of tokens; each tenant's salt has a root of its own. A node nobody holds
//! stays until its block is needed: the one unused for longest goes first, leaves before their parents.

use std::collections::{BTreeSet, HashMap};

/// A block's tokens.
type Key = Box<[u32]>;

type NodeId = u32;

#[derive(Debug)]
struct Node {
    /// `None` below a root.
    parent: Option<NodeId>,
    salt: u64,
    key: Key,
    block: u32,
    children: HashMap<Key, NodeId>,
    /// Sequences whose path goes through it.
    holders: u32,
    last_used: u64,
}

/// What a sequence holds.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    salt: u64,
    path: Vec<NodeId>,
    /// Blocks of all positions in order: those of the path, then its own.
    table: Vec<u32>,
}

impl Holding {
    /// A sequence of a tenant that holds nothing.
    pub fn new(salt: u64) -> Self {
        Self { salt, ..Self::default() }
    }

    /// Whose beginnings it may share.
    pub fn salt(&self) -> u64 {
        self.salt
    }

    /// Blocks in order of positions.
    pub fn table(&self) -> &[u32] {
        &self.table
    }
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheStats {
    pub blocks: usize,
    /// In nobody's hands and not known to the tree.
    pub free: usize,
    /// Known to the tree, held by nobody.
    pub cached: usize,
    /// Tokens looked up, and those found.
    pub asked_tokens: u64,
    pub found_tokens: u64,
    pub evictions: u64,
}

/// All blocks of one engine.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Positions of a block.
    block: usize,
    free: Vec<u32>,
    nodes: HashMap<NodeId, Node>,
    roots: HashMap<u64, HashMap<Key, NodeId>>,
    /// Nodes without holders and children, by last use.
    idle: BTreeSet<(u64, NodeId)>,
    next: NodeId,
    clock: u64,
    /// `free` is told by its list.
    stats: CacheStats,
}

/// There is no block left that nobody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Cache {
    /// `blocks` free blocks of `block` positions.
    pub fn new(blocks: usize, block: usize) -> Self {
        Self {
            block,
            free: (0..blocks as u32).rev().collect(),
            nodes: HashMap::new(),
            roots: HashMap::new(),
            idle: BTreeSet::new(),
            next: 0,
            clock: 0,
            stats: CacheStats { blocks, ..CacheStats::default() },
        }
    }

    /// Positions of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> CacheStats {
        CacheStats { free: self.free.len(), ..self.stats }
    }

    /// Blocks that a new holder could get: below a node that nobody holds there is none that somebody holds.
    pub fn available(&self) -> usize {
        self.free.len() + self.stats.cached
    }

    fn walk<'a>(&'a self, salt: u64, tokens: &'a [u32]) -> impl Iterator<Item = NodeId> + 'a {
        let mut at: Option<NodeId> = None;
        tokens.chunks_exact(self.block).map_while(move |key| {
            at = Some(self.child(salt, at, key)?);
            at
        })
    }

    fn child(&self, salt: u64, parent: Option<NodeId>, key: &[u32]) -> Option<NodeId> {
        match parent {
            None => self.roots.get(&salt)?.get(key).copied(),
            Some(parent) => self.nodes.get(&parent)?.children.get(key).copied(),
        }
    }

    /// Gives an empty holding the blocks that the tree knows of `tokens`, and returns how many positions those are.
    pub fn attach(&mut self, holding: &mut Holding, tokens: &[u32]) -> usize {
        debug_assert!(holding.table.is_empty(), "only an empty holding takes a beginning");
        self.clock += 1;
        let path: Vec<NodeId> = self.walk(holding.salt, tokens).collect();
        for id in &path {
            self.hold(*id);
            holding.table.push(self.nodes[id].block);
        }
        holding.path = path;
        holding.path.len() * self.block
    }

    /// Counts a prompt that was looked up, and how much of it was there.
    pub fn count(&mut self, asked: usize, found: usize) {
        self.stats.asked_tokens += asked as u64;
        self.stats.found_tokens += found as u64;
    }

    /// Takes over what others made known of `tokens` behind the `computed` positions, instead of computing it once
    /// more; returns how many positions are there now. A sequence that is in the middle of a block takes nothing.
    pub fn advance(&mut self, holding: &mut Holding, tokens: &[u32], computed: usize) -> usize {
        if computed != holding.path.len() * self.block {
            return computed;
        }
        self.clock += 1;
        for (i, key) in tokens.chunks_exact(self.block).enumerate().skip(holding.path.len()) {
            let Some(id) = self.child(holding.salt, holding.path.last().copied(), key) else { break };
            self.hold(id);
            let block = self.nodes[&id].block;
            match holding.table.get_mut(i) {
                Some(own) => self.free.push(std::mem::replace(own, block)),
                None => holding.table.push(block),
            }
            holding.path.push(id);
            self.stats.found_tokens += self.block as u64;
        }
        holding.path.len() * self.block
    }

    fn hold(&mut self, id: NodeId) {
        let clock = self.clock;
        let node = self.nodes.get_mut(&id).expect("a path names nodes of the tree");
        if node.holders == 0 && node.children.is_empty() {
            self.idle.remove(&(node.last_used, id));
        }
        self.stats.cached -= usize::from(node.holders == 0);
        node.holders += 1;
        node.last_used = clock;
    }

    /// Gives room for `positions`; all or nothing.
    pub fn grow(&mut self, holding: &mut Holding, positions: usize) -> Result<(), Exhausted> {
        let missing = positions.div_ceil(self.block).saturating_sub(holding.table.len());
        while self.free.len() < missing {
            self.evict()?;
        }
        for _ in 0..missing {
            holding.table.push(self.free.pop().ok_or(Exhausted)?);
        }
        Ok(())
    }

    fn evict(&mut self) -> Result<(), Exhausted> {
        let (_, id) = self.idle.pop_first().ok_or(Exhausted)?;
        let node = self.nodes.remove(&id).expect("an idle node is in the tree");
        self.free.push(node.block);
        self.stats.cached -= 1;
        self.stats.evictions += 1;
        match node.parent {
            None => {
                if let Some(beginnings) = self.roots.get_mut(&node.salt) {
                    beginnings.remove(&node.key);
                    if beginnings.is_empty() {
                        self.roots.remove(&node.salt);
                    }
                }
            }
            Some(parent) => {
                let above = self.nodes.get_mut(&parent).expect("a parent outlives its children");
                above.children.remove(&node.key);
                if above.holders == 0 && above.children.is_empty() {
                    self.idle.insert((above.last_used, parent));
                }
            }
        }
        Ok(())
    }

    /// Makes the full blocks of `tokens`, which are (or in this step will be) computed, known to the tree.
    ///
    /// Where another sequence made the same block known first, this one lets its own go and shares that.
    pub fn publish(&mut self, holding: &mut Holding, tokens: &[u32]) {
        self.clock += 1;
        for (i, key) in tokens.chunks_exact(self.block).enumerate().skip(holding.path.len()) {
            let parent = holding.path.last().copied();
            let id = match self.child(holding.salt, parent, key) {
                Some(id) => {
                    self.free.push(holding.table[i]);
                    holding.table[i] = self.nodes[&id].block;
                    id
                }
                None => self.insert(holding.salt, parent, key.into(), holding.table[i]),
            };
            self.hold(id);
            holding.path.push(id);
        }
    }

    fn insert(&mut self, salt: u64, parent: Option<NodeId>, key: Key, block: u32) -> NodeId {
        while self.nodes.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let node =
            Node { parent, salt, key: key.clone(), block, children: HashMap::new(), holders: 0, last_used: self.clock };
        self.nodes.insert(id, node);
        self.stats.cached += 1;
        self.idle.insert((self.clock, id));
        match parent {
            None => {
                self.roots.entry(salt).or_default().insert(key, id);
            }
            Some(parent) => {
                let above = self.nodes.get_mut(&parent).expect("a path names nodes of the tree");
                if above.holders == 0 && above.children.is_empty() {
                    self.idle.remove(&(above.last_used, parent));
                }
                above.children.insert(key, id);
            }
        }
        id
    }

    /// A second holder of the same positions. Blocks of the path are shared; of the others, copies are needed:
    /// pairs `(from, to)`.
    pub fn fork(&mut self, holding: &Holding) -> Result<(Holding, Vec<(u32, u32)>), Exhausted> {
        let own = &holding.table[holding.path.len()..];
        while self.free.len() < own.len() {
            self.evict()?;
        }
        self.clock += 1;
        for id in &holding.path {
            self.hold(*id);
        }
        let mut copies = Vec::new();
        let mut table = holding.table[..holding.path.len()].to_vec();
        for from in own {
            let to = self.free.pop().ok_or(Exhausted)?;
            copies.push((*from, to));
            table.push(to);
        }
        Ok((Holding { salt: holding.salt, path: holding.path.clone(), table }, copies))
    }

    /// Takes everything back. What the tree knows stays known until its block is needed.
    pub fn release(&mut self, holding: &mut Holding) {
        self.clock += 1;
        let own = holding.table.split_off(holding.path.len());
        self.free.extend(own.into_iter().rev());
        // From the end, so that of one path the later blocks are older and go first.
        for id in holding.path.drain(..).rev() {
            let node = self.nodes.get_mut(&id).expect("a path names nodes of the tree");
            node.holders -= 1;
            node.last_used = self.clock;
            self.stats.cached += usize::from(node.holders == 0);
            if node.holders == 0 && node.children.is_empty() {
                self.idle.insert((node.last_used, id));
            }
        }
        holding.table.clear();
    }
}

#[cfg(test)]
mod tests;
