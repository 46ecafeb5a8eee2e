//! Keeps a registry as its directories are, while a kernel runs.
//!
//! The system's events only say when to look; what is there is told by looking. So no event that is
//! lost, doubled or late can leave the registry wrong for longer than [`POLL`].

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::Finder;
use crate::registry::Registry;

/// How often the directories are looked at without an event: on a file system that sends none (a
/// network's), or for a directory that is made later.
const POLL: Duration = Duration::from_secs(2);

/// After an event, what follows at once is waited for.
const QUIET: Duration = Duration::from_millis(50);

/// A look at a large directory takes longer; it may take this part of the time.
const LOOK_SHARE: u32 = 10;

/// Follows the directories of `finder` for ever. Dropping the future ends it.
pub async fn follow(mut finder: Finder, registry: Registry) {
    let mut watches = Watches::new();
    let mut again = finder.unsettled();
    loop {
        watches.cover(finder.dirs());
        let pause = if again { QUIET } else { POLL };
        if tokio::time::timeout(pause, watches.changed.notified()).await.is_ok() {
            tokio::time::sleep(QUIET).await;
        }
        let began = Instant::now();
        let looked = tokio::task::spawn_blocking(move || {
            let found = finder.look();
            (finder, found)
        });
        // It fails only when the runtime ends.
        let Ok((seen, found)) = looked.await else { return };
        finder = seen;
        again = finder.unsettled();
        registry.update(found);
        tokio::time::sleep(began.elapsed() * LOOK_SHARE).await;
    }
}

/// Fills a registry with what the directories hold now, and waits until it is loaded. Files that are
/// being written are waited for as long as [`Finder`] does.
pub async fn load_once(dirs: Vec<PathBuf>, registry: &Registry) {
    let mut finder = Finder::new(dirs);
    registry.fill(finder.look()).await;
    while registry.awaits_files() {
        tokio::time::sleep(QUIET).await;
        registry.update(finder.look());
    }
    registry.ready().await;
}

/// The system's watches on the directories that exist.
struct Watches {
    changed: Arc<Notify>,
    watcher: Option<RecommendedWatcher>,
    /// Which directory is watched under a path: one that was removed and made anew is another.
    covered: HashMap<PathBuf, (u64, u64)>,
}

impl Watches {
    fn new() -> Self {
        let changed = Arc::new(Notify::new());
        let told = Arc::clone(&changed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.as_ref().map_or(true, |e| is_change(e.kind)) {
                told.notify_one();
            }
        });
        let watcher = watcher.map_err(|e| tracing::warn!("{}", unwatched(&e))).ok();
        Self { changed, watcher, covered: HashMap::new() }
    }

    fn cover(&mut self, dirs: &[PathBuf]) {
        let Some(watcher) = &mut self.watcher else { return };
        for dir in dirs {
            let Ok(meta) = fs::metadata(dir) else {
                self.covered.remove(dir);
                continue;
            };
            let id = (meta.dev(), meta.ino());
            if self.covered.get(dir) == Some(&id) {
                continue;
            }
            if let Err(e) = watcher.watch(dir, RecursiveMode::NonRecursive) {
                tracing::warn!(dir = %dir.display(), "{}", unwatched(&e));
            }
            self.covered.insert(dir.clone(), id);
        }
    }
}

/// Reading is no change; the end of writing is.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

fn unwatched(error: &notify::Error) -> String {
    format!("a plugin directory cannot be watched ({error}): it is looked at every {} s", POLL.as_secs())
}
