//! What lies in a device's memory, and what goes when more is wanted than the limit allows.
//!
//! Every buffer that holds values is a [`Tensor`]: weights, caches, arenas, arguments, results. A
//! run pins all that it needs at once ([`Registry::pin`]). What is not there is brought, and for
//! that others go, those first that were used longest ago and that no run has pinned: dropped when
//! their bytes can be had again (weights from their file) or are not needed (an arena), downloaded
//! when the device has the only copy (a cache that was written). A tensor that comes back lies in
//! another buffer, which its [`Pins::generation`] tells.
//!
//! Promises:
//! - The bytes of all tensors on the device never exceed the limit.
//! - The lock guards a table. It is never held while bytes move or the device works: a tensor that
//!   moves is marked, and who wants it waits for the mark to go.
//! - Nobody waits with something pinned, but for tensors that another thread is bringing right
//!   now. Waiting threads are served in the order in which they came. So there is no deadlock as
//!   long as runs end, and no thread starves.
//!
//! Without a limit tensors come when they are made and stay; a run then need not pin.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::GpuError;

/// The memory of a device, as the registry uses it.
pub(crate) trait Memory {
    type Buffer: Clone;

    /// A buffer filled with zeros.
    ///
    /// # Errors
    /// When there is no memory left, or the device does not allow it.
    fn allocate(&self, label: &str, bytes: u64) -> Result<Self::Buffer, GpuError>;

    /// Frees a buffer, whoever still has a handle of it.
    fn free(&self, buffer: Self::Buffer);

    /// Writes bytes that a tensor can always be made from again.
    ///
    /// # Errors
    /// When they cannot be read, or the device fails.
    fn fill(&self, buffer: &Self::Buffer, source: &dyn Source) -> Result<(), GpuError>;

    /// Writes the first bytes of a buffer.
    ///
    /// # Errors
    /// When the device fails.
    fn upload(&self, buffer: &Self::Buffer, bytes: &[u8]) -> Result<(), GpuError>;

    /// Reads the first bytes of a buffer.
    ///
    /// # Errors
    /// When the device fails.
    fn download(&self, buffer: &Self::Buffer, bytes: &mut [u8]) -> Result<(), GpuError>;
}

/// Takes bytes at an offset.
pub(crate) type Sink<'a> = dyn FnMut(u64, &[u8]) -> Result<(), GpuError> + 'a;

/// Bytes that can be had whenever they are needed: a clean copy on the host or in a file.
pub(crate) trait Source: Send + Sync {
    /// Hands out all bytes, in pieces of whole words that follow each other: the offset and the
    /// bytes of each.
    ///
    /// # Errors
    /// When the bytes cannot be made, or `each` fails.
    fn pieces(&self, each: &mut Sink<'_>) -> Result<(), GpuError>;
}

/// What a tensor's bytes are good for when no run uses it.
#[derive(Clone)]
pub(crate) enum Content {
    /// They can be had again.
    Clean(Arc<dyn Source>),
    /// They are the only copy once a run has written them, and zeros before.
    State,
    /// They are not needed between runs.
    Scratch,
}

/// Where the bytes of tensors are, how many came and went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Bytes that tensors may take on the device.
    pub limit: Option<u64>,
    /// Bytes of the tensors on the device, now and at most so far.
    pub resident: u64,
    pub peak: u64,
    /// Tensors of which only the host, only the device, or both have the bytes. Those without
    /// bytes to keep are counted where they are.
    pub on_host: usize,
    pub on_device: usize,
    pub on_both: usize,
    /// Tensors that runs have pinned now.
    pub pinned: usize,
    /// Tensors and bytes that were brought to the device.
    pub uploads: u64,
    pub uploaded: u64,
    /// Tensors and bytes that went and had to be copied to the host for that.
    pub downloads: u64,
    pub downloaded: u64,
    /// Tensors that went without a copy.
    pub dropped: u64,
    /// Weights that passed through for one run ([`super::stream`]): how many, and their bytes.
    pub streams: u64,
    pub streamed: u64,
    /// Times that a run waited for others to give memory free.
    pub waits: u64,
}

/// A tensor of a registry; gone with the last handle.
pub(crate) struct Tensor<M: Memory> {
    id: u64,
    bytes: u64,
    registry: Arc<Registry<M>>,
}

impl<M: Memory> Tensor<M> {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is on the device now.
    pub fn is_resident(&self) -> bool {
        self.registry.lock().entries.get(&self.id).is_some_and(|e| e.buffer.is_some())
    }
}

impl<M: Memory> Drop for Tensor<M> {
    fn drop(&mut self) {
        let mut table = self.registry.lock();
        if let Some(entry) = table.entries.remove(&self.id)
            && entry.buffer.is_some()
        {
            table.resident -= entry.bytes;
        }
        self.registry.changed.notify_all();
    }
}

struct Entry<B> {
    label: Arc<str>,
    bytes: u64,
    content: Content,
    buffer: Option<B>,
    /// The bytes of a state that went.
    host: Option<Vec<u8>>,
    /// Whether the device's bytes are the only copy.
    dirty: bool,
    /// Whether a thread moves it, in either direction.
    moving: bool,
    pins: usize,
    used: u64,
    generation: u64,
}

struct Table<B> {
    entries: HashMap<u64, Entry<B>>,
    next: u64,
    clock: u64,
    /// Bytes on the device, and of tensors that have their place but are still coming.
    resident: u64,
    coming: u64,
    /// Threads that want to pin, in order.
    queue: VecDeque<u64>,
    tickets: u64,
    stats: MemoryStats,
}

/// The tensors of a device.
pub(crate) struct Registry<M: Memory> {
    limit: Option<u64>,
    table: Mutex<Table<M::Buffer>>,
    /// Something was unpinned, moved or dropped, or the queue went on.
    changed: Condvar,
}

/// Tensors that stay on the device while this lives.
pub(crate) struct Pins<M: Memory> {
    registry: Arc<Registry<M>>,
    /// By tensor, its buffer: let go before the tensors are.
    buffers: Vec<M::Buffer>,
    tensors: Vec<Arc<Tensor<M>>>,
    generation: u64,
}

impl<M: Memory> Pins<M> {
    /// The buffers, in the order in which the tensors were given.
    pub fn buffers(&self) -> &[M::Buffer] {
        &self.buffers
    }

    /// A number that changes when any of the tensors has moved to another buffer.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl<M: Memory> Drop for Pins<M> {
    fn drop(&mut self) {
        let mut table = self.registry.lock();
        table.clock += 1;
        let now = table.clock;
        for tensor in &self.tensors {
            if let Some(entry) = table.entries.get_mut(&tensor.id) {
                entry.pins -= 1;
                entry.used = now;
            }
        }
        self.registry.changed.notify_all();
    }
}

/// What a thread may do now to have its tensors on the device.
enum Turn<B> {
    Wait,
    /// First these must go.
    Evict(Vec<(u64, B, bool)>),
    /// They are pinned; the thread brings these.
    Bring(Vec<u64>),
}

impl<M: Memory> Registry<M> {
    pub fn new(limit: Option<u64>) -> Arc<Registry<M>> {
        Arc::new(Registry {
            limit,
            table: Mutex::new(Table {
                entries: HashMap::new(),
                next: 0,
                clock: 0,
                resident: 0,
                coming: 0,
                queue: VecDeque::new(),
                tickets: 0,
                stats: MemoryStats { limit, ..MemoryStats::default() },
            }),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table<M::Buffer>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        table: MutexGuard<'a, Table<M::Buffer>>,
    ) -> MutexGuard<'a, Table<M::Buffer>> {
        self.changed.wait(table).unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that tensors may take on the device.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// A tensor that is not on the device yet.
    pub fn tensor(
        self: &Arc<Self>,
        label: impl Into<Arc<str>>,
        bytes: u64,
        content: Content,
    ) -> Arc<Tensor<M>> {
        let mut table = self.lock();
        let id = table.next;
        table.next += 1;
        let entry = Entry {
            label: label.into(),
            bytes,
            content,
            buffer: None,
            host: None,
            dirty: false,
            moving: false,
            pins: 0,
            used: 0,
            generation: 0,
        };
        table.entries.insert(id, entry);
        Arc::new(Tensor { id, bytes, registry: self.clone() })
    }

    /// What is where.
    pub fn stats(&self) -> MemoryStats {
        let table = self.lock();
        let mut stats = table.stats;
        stats.resident = table.resident;
        for entry in table.entries.values() {
            let clean = matches!(entry.content, Content::Clean(_));
            match &entry.buffer {
                None => stats.on_host += 1,
                Some(_) if clean => stats.on_both += 1,
                Some(_) => stats.on_device += 1,
            }
            stats.pinned += usize::from(entry.pins > 0);
        }
        stats
    }

    /// Counts weights that passed through for one run.
    pub fn streamed(&self, tensors: u64, bytes: u64) {
        let mut table = self.lock();
        table.stats.streams += tensors;
        table.stats.streamed += bytes;
    }

    /// Brings tensors to the device and keeps them there; states count as written from now on.
    /// Each is given once.
    ///
    /// # Errors
    /// When all of them together exceed the limit, there is no memory, or the device fails.
    pub fn pin(
        self: &Arc<Self>,
        memory: &M,
        tensors: &[Arc<Tensor<M>>],
    ) -> Result<Pins<M>, GpuError> {
        let bytes = tensors.iter().fold(0u64, |sum, t| sum.saturating_add(t.bytes));
        if let Some(limit) = self.limit.filter(|&limit| bytes > limit) {
            let table = self.lock();
            let greatest = tensors.iter().max_by_key(|t| t.bytes);
            let entry = greatest.and_then(|t| table.entries.get(&t.id));
            let what = entry.map_or_else(String::new, |e| e.label.to_string());
            let of = greatest.map_or(0, |t| t.bytes);
            return Err(GpuError::Limit { what, bytes: of, needed: bytes, limit });
        }
        loop {
            let pins = self.claim(memory, tensors)?;
            if let Some(pins) = self.settle(pins)? {
                return Ok(pins);
            }
        }
    }

    /// Waits for its turn, makes room, pins, and brings what is missing.
    fn claim(
        self: &Arc<Self>,
        memory: &M,
        tensors: &[Arc<Tensor<M>>],
    ) -> Result<Pins<M>, GpuError> {
        let mut table = self.lock();
        let ticket = table.tickets;
        table.tickets += 1;
        table.queue.push_back(ticket);
        let own: HashSet<u64> = tensors.iter().map(|t| t.id).collect();
        let mut waited = false;
        let bring = loop {
            let turn = match table.queue.front() == Some(&ticket) {
                true => table.turn(self.limit, tensors, &own),
                false => Turn::Wait,
            };
            match turn {
                Turn::Bring(ids) => break ids,
                Turn::Wait => {
                    table.stats.waits += u64::from(!std::mem::replace(&mut waited, true));
                    table = self.wait(table);
                }
                Turn::Evict(victims) => {
                    drop(table);
                    let outcome = self.evict(memory, victims);
                    table = self.lock();
                    if let Err(e) = outcome {
                        table.queue.retain(|&t| t != ticket);
                        self.changed.notify_all();
                        return Err(e);
                    }
                }
            }
        };
        table.queue.pop_front();
        drop(table);
        self.changed.notify_all();
        // From here on the pins are given back by dropping this.
        let pins = Pins {
            registry: self.clone(),
            tensors: tensors.to_vec(),
            buffers: Vec::new(),
            generation: 0,
        };
        let mut bring = bring.into_iter();
        for id in bring.by_ref() {
            if let Err(e) = self.bring(memory, id) {
                // The others are not brought either.
                let mut table = self.lock();
                bring.for_each(|id| table.arrived(id, None));
                self.changed.notify_all();
                return Err(e);
            }
        }
        Ok(pins)
    }

    /// Waits for tensors that other threads are bringing; `None` when one did not come.
    fn settle(&self, mut pins: Pins<M>) -> Result<Option<Pins<M>>, GpuError> {
        let mut table = self.lock();
        let moving = |table: &Table<M::Buffer>, t: &Arc<Tensor<M>>| {
            table.entries.get(&t.id).is_some_and(|e| e.moving)
        };
        while pins.tensors.iter().any(|t| moving(&table, t)) {
            table = self.wait(table);
        }
        let entries = pins.tensors.iter().filter_map(|t| table.entries.get(&t.id));
        let found: Vec<(M::Buffer, u64)> =
            entries.filter_map(|e| Some((e.buffer.clone()?, e.generation))).collect();
        drop(table);
        if found.len() < pins.tensors.len() {
            return Ok(None);
        }
        for (buffer, generation) in found {
            pins.buffers.push(buffer);
            // Generations only grow, so a sum of them is the same only if all are.
            pins.generation += generation;
        }
        Ok(Some(pins))
    }

    /// Moves tensors off the device. All of them are marked as moving.
    fn evict(&self, memory: &M, victims: Vec<(u64, M::Buffer, bool)>) -> Result<(), GpuError> {
        let mut victims = victims.into_iter();
        while let Some((id, buffer, dirty)) = victims.next() {
            let bytes = self.lock().entries.get(&id).map_or(0, |e| e.bytes);
            let mut host = None;
            if dirty {
                let mut copy = vec![0; bytes as usize];
                if let Err(e) = memory.download(&buffer, &mut copy) {
                    let mut table = self.lock();
                    let rest = victims.map(|(id, ..)| id);
                    for id in std::iter::once(id).chain(rest) {
                        if let Some(entry) = table.entries.get_mut(&id) {
                            entry.moving = false;
                        }
                    }
                    self.changed.notify_all();
                    return Err(e);
                }
                host = Some(copy);
            }
            memory.free(buffer);
            let mut table = self.lock();
            // It may have been given up meanwhile.
            if let Some(entry) = table.entries.get_mut(&id) {
                entry.buffer = None;
                entry.moving = false;
                entry.dirty = false;
                entry.host = host;
                table.resident -= bytes;
                match dirty {
                    true => {
                        table.stats.downloads += 1;
                        table.stats.downloaded += bytes;
                    }
                    false => table.stats.dropped += 1,
                }
            }
            drop(table);
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Brings one tensor, which is marked as moving, to the device.
    fn bring(&self, memory: &M, id: u64) -> Result<(), GpuError> {
        let (label, bytes, content, host) = {
            let mut table = self.lock();
            let Some(entry) = table.entries.get_mut(&id) else { return Ok(()) };
            (entry.label.clone(), entry.bytes, entry.content.clone(), entry.host.take())
        };
        let moved = memory.allocate(&label, bytes).and_then(|buffer| {
            let filled = match (&content, &host) {
                (Content::Clean(source), _) => memory.fill(&buffer, &**source),
                (Content::State, Some(bytes)) => memory.upload(&buffer, bytes),
                (Content::State | Content::Scratch, _) => Ok(()),
            };
            match filled {
                Ok(()) => Ok(buffer),
                Err(e) => {
                    memory.free(buffer);
                    Err(e)
                }
            }
        });
        let mut table = self.lock();
        let (buffer, outcome) = match moved {
            Ok(buffer) => (Some(buffer), Ok(())),
            Err(e) => {
                if let Some(entry) = table.entries.get_mut(&id) {
                    entry.host = host;
                }
                (None, Err(e))
            }
        };
        if buffer.is_some() && !matches!(content, Content::Scratch) {
            table.stats.uploads += 1;
            table.stats.uploaded += bytes;
        }
        table.arrived(id, buffer);
        drop(table);
        self.changed.notify_all();
        outcome
    }
}

impl<B: Clone> Table<B> {
    /// What the first of the queue may do.
    fn turn<M: Memory<Buffer = B>>(
        &mut self,
        limit: Option<u64>,
        tensors: &[Arc<Tensor<M>>],
        own: &HashSet<u64>,
    ) -> Turn<B> {
        let (mut missing, mut needed) = (Vec::new(), 0);
        for id in tensors.iter().map(|t| t.id) {
            let Some(entry) = self.entries.get(&id) else { continue };
            match &entry.buffer {
                // On its way out; then it is missing.
                Some(_) if entry.moving => return Turn::Wait,
                Some(_) => {}
                // Another thread brings it, and has room for it.
                None if entry.moving => {}
                None => {
                    missing.push(id);
                    needed += entry.bytes;
                }
            }
        }
        let free =
            limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.resident + self.coming));
        if needed > free {
            let mut candidates: Vec<(u64, u64)> = self
                .entries
                .iter()
                .filter(|(id, e)| {
                    e.buffer.is_some() && !e.moving && e.pins == 0 && !own.contains(id)
                })
                .map(|(&id, e)| (e.used, id))
                .collect();
            candidates.sort_unstable();
            let mut victims = Vec::new();
            let mut freed = 0;
            for (_, id) in candidates {
                if freed >= needed - free {
                    break;
                }
                let Some(entry) = self.entries.get_mut(&id) else { continue };
                if let Some(buffer) = &entry.buffer {
                    freed += entry.bytes;
                    entry.moving = true;
                    victims.push((id, buffer.clone(), entry.dirty));
                }
            }
            // Nothing to evict: others have pinned the rest, and will be done with it.
            return if victims.is_empty() { Turn::Wait } else { Turn::Evict(victims) };
        }
        for id in own {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.pins += 1;
                entry.dirty |= matches!(entry.content, Content::State);
            }
        }
        for id in &missing {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.moving = true;
            }
        }
        self.coming += needed;
        Turn::Bring(missing)
    }

    /// A tensor that was coming is here, or is not coming any more.
    fn arrived(&mut self, id: u64, buffer: Option<B>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.moving = false;
        self.coming -= entry.bytes;
        if buffer.is_some() {
            entry.generation += 1;
            self.resident += entry.bytes;
            self.stats.peak = self.stats.peak.max(self.resident);
        }
        entry.buffer = buffer;
    }
}

#[cfg(test)]
mod tests;
