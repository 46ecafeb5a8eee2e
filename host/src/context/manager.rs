//! `PageManager`: the page table of one process.
//!
//! It owns which pages exist and which are resident. Eviction order is `swap`'s, looks are `layout`'s.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Error;
use super::layout::KvCacheOptimizer;
use super::page::{ContextPage, NewPage, default_importance};
use super::swap::{SwapManager, Turn};
use super::tokens::{self, Counter};
use crate::abi::Message;
use crate::process::Pid;
use crate::storage::{PageKind, PageMeta, PageRecord};

/// What is kept of a narrowed bound, for text that is denser than what was reported.
const MARGIN: f32 = 1.15;
/// The bound is never narrowed to less than this part of it.
const LEAST_SCALE: f32 = 0.5;

/// A page's text, or where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The exact text.
    Resident(String),
    /// Only the store has it: load it there, then call [`PageManager::note_fault`].
    Swapped,
}

/// What a process's context takes up and what happened in it. Counters start with the page table, so
/// at 0 again after [`PageManager::restore`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Size of the window.
    pub window_tokens: u32,
    /// What the resident pages take up in it, the stub included.
    pub resident_tokens: u32,
    /// Pages in the window.
    pub resident_pages: u32,
    /// Pages in the store only.
    pub swapped_pages: u64,
    /// Reads that found the page swapped.
    pub faults: u64,
    /// Reads that found it resident.
    pub hits: u64,
    /// Pages swapped out.
    pub evictions: u64,
}

/// Where a page stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Before the history: system, tools, task.
    Head,
    /// The conversation.
    History,
    /// In the store only.
    Swapped,
}

impl Region {
    /// `head`, `history` or `swapped`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::History => "history",
            Self::Swapped => "swapped",
        }
    }
}

/// A page, where it stands and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement<'a> {
    /// The page.
    pub page: &'a ContextPage,
    /// Where.
    pub region: Region,
    /// `pinned`, `newest turn`, `fits the window` or `oldest turn over the watermark`.
    pub why: &'static str,
}

/// The page table of one process: which pages it has, which are in the window, how that looks.
#[derive(Debug)]
pub struct PageManager {
    pid: Pid,
    window: u32,
    /// Real tokens per counted one, as the provider last reported them: 1 until it has, never more.
    scale: f32,
    counter: Counter,
    /// What the last [`PageManager::make_room`] kept free for the reply.
    reserve: u32,
    resident: BTreeMap<u64, ContextPage>,
    swapped: BTreeMap<u64, ContextPage>,
    /// Lowest id of a page that is not of a head kind: head pages come before it.
    history_from: u64,
    /// Assistant pages by the ids of their calls. Models reuse ids, so there can be several.
    callers: HashMap<String, BTreeSet<u64>>,
    /// Tool results by the ids of the calls that they answer.
    results: HashMap<String, BTreeSet<u64>>,
    swap: SwapManager,
    layout: KvCacheOptimizer,
}

impl PageManager {
    /// An empty table with a window of so many tokens.
    #[must_use]
    pub fn new(pid: Pid, window_tokens: u32) -> Self {
        Self {
            pid,
            window: window_tokens,
            scale: 1.0,
            counter: Counter::default(),
            reserve: 0,
            resident: BTreeMap::new(),
            swapped: BTreeMap::new(),
            history_from: u64::MAX,
            callers: HashMap::new(),
            results: HashMap::new(),
            swap: SwapManager::default(),
            layout: KvCacheOptimizer::new(window_tokens),
        }
    }

    /// The table as the store's records describe it. Texts of swapped pages are let go.
    #[must_use]
    pub fn restore(pid: Pid, window_tokens: u32, mut pages: Vec<PageRecord>) -> Self {
        let mut table = Self::new(pid, window_tokens);
        pages.sort_by_key(|p| p.id);
        for record in pages {
            let turn = table.turn_of(record.id, record.answers.as_ref());
            table.insert(record, turn);
        }
        table
    }

    /// Counts new pages for the model that answers from now on, in a window of its size.
    pub fn set_model(&mut self, counter: Counter, window_tokens: u32) {
        if self.window != window_tokens || self.counter != counter {
            self.scale = 1.0;
        }
        self.counter = counter;
        if self.window != window_tokens {
            self.window = window_tokens;
            self.layout = KvCacheOptimizer::new(window_tokens);
        }
    }

    /// Narrows the bound: a prompt that [`Self::resident_tokens`] took for `taken` tokens had
    /// `reported`. Does nothing where the counts are exact.
    pub fn calibrate(&mut self, taken: u32, reported: u32) {
        if self.counter == Counter::Bound && taken > 0 {
            #[allow(clippy::cast_precision_loss, reason = "a ratio of token counts")]
            let ratio = reported as f32 / taken as f32 * self.scale * MARGIN;
            self.scale = ratio.clamp(LEAST_SCALE, 1.0);
        }
    }

    /// Adds a page to the window and returns the record to store. A result whose call was swapped out
    /// joins its turn there: the record says that it is not resident.
    ///
    /// # Errors
    /// [`Error::Taken`] and [`Error::Importance`]; nothing changes then.
    pub fn append(&mut self, page: NewPage) -> Result<PageRecord, Error> {
        if self.page(page.id).is_some() {
            return Err(Error::Taken { id: page.id });
        }
        let importance = checked(page.importance.unwrap_or_else(|| default_importance(page.kind)))?;
        let turn = self.turn_of(page.id, page.answers.as_ref());
        let resident = !self.swapped.contains_key(&turn);
        let record = page.into_record(self.pid, importance, resident, self.counter);
        self.insert(record.clone(), turn);
        Ok(record)
    }

    /// Takes back the page `id`, whose record the store refused, so that another can be appended in its place.
    pub fn retract(&mut self, id: u64) {
        let Some(page) = self.resident.remove(&id).or_else(|| self.swapped.remove(&id)) else { return };
        for call in &page.tool_calls {
            self.callers.entry(call.id.clone()).or_default().remove(&id);
        }
        if let Some((call, _)) = page.answers {
            self.results.entry(call).or_default().remove(&id);
        }
    }

    /// Reads a page's text. Counts a hit if it is resident.
    ///
    /// # Errors
    /// [`Error::NoPage`].
    pub fn read(&mut self, id: u64, now_ms: u64) -> Result<Read, Error> {
        let Some(page) = self.resident.get_mut(&id) else {
            return if self.swapped.contains_key(&id) { Ok(Read::Swapped) } else { Err(Error::NoPage { id }) };
        };
        touch(&mut page.meta, now_ms);
        self.swap.hits += 1;
        Ok(Read::Resident(page.text.clone()))
    }

    /// Counts a fault: the caller read the swapped page `id` from the store. The page stays swapped.
    pub fn note_fault(&mut self, id: u64, now_ms: u64) {
        if let Some(page) = self.swapped.get_mut(&id) {
            touch(&mut page.meta, now_ms);
            self.swap.faults += 1;
        }
    }

    /// Pins or unpins a page; a pinned one keeps its whole turn in the window. A swapped page stays
    /// swapped.
    ///
    /// # Errors
    /// [`Error::NoPage`].
    pub fn pin(&mut self, id: u64, pinned: bool) -> Result<PageMeta, Error> {
        let meta = self.meta_mut(id)?;
        meta.pinned = pinned;
        Ok(*meta)
    }

    /// Sets how much a page matters.
    ///
    /// # Errors
    /// [`Error::NoPage`] and [`Error::Importance`].
    pub fn set_importance(&mut self, id: u64, importance: f32) -> Result<PageMeta, Error> {
        let importance = checked(importance)?;
        let meta = self.meta_mut(id)?;
        meta.importance = importance;
        Ok(*meta)
    }

    /// Makes room for a reply of `reserve_tokens` (half of the window at most): if the window is over
    /// its high watermark, swaps whole turns out down to the low one. Returns the changes to store.
    /// Where the pinned pages and the newest turn alone are too large, [`Self::window`] abridges them.
    ///
    /// Call it before each [`Self::window`] that a model gets. `_now_ms` is for replacement that weighs
    /// recency; oldest first needs no clock.
    pub fn make_room(&mut self, reserve_tokens: u32, _now_ms: u64) -> Vec<(u64, PageMeta)> {
        let gone = self.leaving(reserve_tokens);
        let mut changes = Vec::with_capacity(gone.len());
        for id in gone {
            if let Some(mut page) = self.resident.remove(&id) {
                page.swap_out();
                changes.push((id, page.meta));
                self.swapped.insert(id, page);
                self.swap.evictions += 1;
            }
        }
        changes
    }

    /// The pages that [`Self::make_room`] would swap out.
    pub fn leaving(&mut self, reserve_tokens: u32) -> Vec<u64> {
        self.reserve = reserve_tokens;
        let victims = SwapManager::victims(&self.turns(), self.unabridged(), self.high());
        let victims: BTreeSet<u64> = victims.into_iter().collect();
        self.resident.values().filter(|p| victims.contains(&p.turn)).map(|p| p.id).collect()
    }

    /// The window as messages: system, task, stub of the swapped pages, history in id order. Tool
    /// schemas are not among them: providers take those apart, though they fill the window too.
    #[must_use]
    pub fn window(&self) -> Vec<Message> {
        let (head, history) = self.regions();
        self.layout.messages(&head, self.stub(), &history, self.ceiling())
    }

    /// What the window takes up, the tool schemas included, as far as it is known.
    #[must_use]
    pub fn resident_tokens(&self) -> u32 {
        let ceiling = self.ceiling();
        let size = |p: &ContextPage| {
            let shown = self.layout.shown(p);
            if p.kind == PageKind::Tools { shown } else { shown.min(ceiling) }
        };
        let counted = self.resident.values().map(size).fold(self.stub_tokens(), u32::saturating_add);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and no larger")]
        let real = (f64::from(counted) * f64::from(self.scale)).ceil() as u32;
        real
    }

    /// Sizes and counters.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            window_tokens: self.window,
            resident_tokens: self.resident_tokens(),
            resident_pages: u32::try_from(self.resident.len()).unwrap_or(u32::MAX),
            swapped_pages: self.swapped.len() as u64,
            faults: self.swap.faults,
            hits: self.swap.hits,
            evictions: self.swap.evictions,
        }
    }

    /// A page, resident or swapped.
    #[must_use]
    pub fn page(&self, id: u64) -> Option<&ContextPage> {
        self.resident.get(&id).or_else(|| self.swapped.get(&id))
    }

    /// All pages in window order, the swapped ones after, each with where it stands and why.
    pub fn pages(&self) -> impl Iterator<Item = Placement<'_>> {
        let (head, history) = self.regions();
        let is_newest = self.is_newest();
        let why = move |page: &ContextPage| match page.meta.pinned {
            true => "pinned",
            false if is_newest(page.turn) => "newest turn",
            false => "fits the window",
        };
        let head = head.into_iter().map(|page| (Region::Head, page));
        let history = history.into_iter().map(|page| (Region::History, page));
        let resident = head.chain(history).map(move |(region, page)| Placement { page, region, why: why(page) });
        resident.chain(self.swapped.values().map(|page| Placement {
            page,
            region: Region::Swapped,
            why: "oldest turn over the watermark",
        }))
    }

    /// The newest page that is the result of the tool call `call_id`.
    #[must_use]
    pub fn tool_call_text(&self, call_id: &str) -> Option<u64> {
        self.results.get(call_id)?.last().copied()
    }

    fn insert(&mut self, record: PageRecord, turn: u64) {
        let id = record.id;
        if !is_head_kind(record.kind) {
            self.history_from = self.history_from.min(id);
        }
        for call in &record.tool_calls {
            self.callers.entry(call.id.clone()).or_default().insert(id);
        }
        if let Some((call, _)) = &record.answers {
            self.results.entry(call.clone()).or_default().insert(id);
        }
        let page = ContextPage::new(record, turn);
        let table = if page.meta.resident { &mut self.resident } else { &mut self.swapped };
        table.insert(id, page);
    }

    /// The turn of a page: that of the nearest page before it whose call it answers, else its own.
    fn turn_of(&self, id: u64, answers: Option<&(String, String)>) -> u64 {
        let callers = answers.and_then(|(call, _)| self.callers.get(call));
        callers.and_then(|c| c.range(..id).next_back()).copied().unwrap_or(id)
    }

    /// Whether a turn is current: the last that a person or the model opened, or the last of all.
    fn is_newest(&self) -> impl Fn(u64) -> bool + use<> {
        let last = self.resident.values().next_back().map(|p| p.turn);
        let led = self.resident.values().rev().find(|p| p.leads()).map(|p| p.turn);
        move |turn| Some(turn) == last || Some(turn) == led
    }

    /// Resident turns, oldest first.
    fn turns(&self) -> Vec<Turn> {
        let is_newest = self.is_newest();
        let mut turns: BTreeMap<u64, Turn> = BTreeMap::new();
        for page in self.resident.values() {
            let turn = turns.entry(page.turn).or_insert(Turn { id: page.turn, tokens: 0, stays: false });
            turn.tokens = turn.tokens.saturating_add(self.layout.shown(page));
            turn.stays |= page.meta.pinned || is_newest(page.turn);
        }
        turns.into_values().collect()
    }

    fn regions(&self) -> (Vec<&ContextPage>, Vec<&ContextPage>) {
        let (mut head, history): (Vec<_>, Vec<_>) =
            self.resident.values().partition(|p| is_head_kind(p.kind) && p.id < self.history_from);
        head.sort_by_key(|p| match p.kind {
            PageKind::System => 0,
            PageKind::Tools => 1,
            _ => 2,
        });
        (head, history)
    }

    /// The high watermark in counted tokens: more of them fit where each is less than a real one.
    fn high(&self) -> u32 {
        let real = SwapManager::high(self.window, self.reserve);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and saturates")]
        let counted = (f64::from(real) / f64::from(self.scale)) as u32;
        counted
    }

    /// What the window would take up if nothing but oversized pages were abridged.
    fn unabridged(&self) -> u32 {
        self.resident.values().map(|p| self.layout.shown(p)).fold(self.stub_tokens(), u32::saturating_add)
    }

    fn ceiling(&self) -> u32 {
        self.layout.ceiling(self.resident.values(), self.high().saturating_sub(self.stub_tokens()))
    }

    /// Whether what is resident has to be abridged beyond its oversized pages.
    #[cfg(test)]
    pub(super) fn unfit(&self) -> bool {
        self.unabridged() > self.high()
    }

    /// Says what is swapped out. It changes when something is swapped, so once per batch.
    fn stub(&self) -> Option<String> {
        let (first, last) = (self.swapped.first_key_value()?.0, self.swapped.last_key_value()?.0);
        let tokens: u64 = self.swapped.values().map(|p| u64::from(p.meta.tokens)).sum();
        Some(format!(
            "[pages {first}–{last} ({} pages, {tokens} tokens) of this conversation are in the store; \
             context.read fetches one by id]",
            self.swapped.len()
        ))
    }

    fn stub_tokens(&self) -> u32 {
        self.stub().map_or(0, |text| tokens::of_parts(&text, &[], None))
    }

    fn meta_mut(&mut self, id: u64) -> Result<&mut PageMeta, Error> {
        let page = self.resident.get_mut(&id).or_else(|| self.swapped.get_mut(&id));
        page.map(|p| &mut p.meta).ok_or(Error::NoPage { id })
    }
}

fn is_head_kind(kind: PageKind) -> bool {
    matches!(kind, PageKind::System | PageKind::Tools | PageKind::Task)
}

fn touch(meta: &mut PageMeta, now_ms: u64) {
    meta.accessed_ms = now_ms;
    meta.accesses = meta.accesses.saturating_add(1);
}

fn checked(importance: f32) -> Result<f32, Error> {
    if (0.0..=1.0).contains(&importance) { Ok(importance) } else { Err(Error::Importance { value: importance }) }
}
