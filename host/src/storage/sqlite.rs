//! The store in one SQLite file (`sqlite:PATH`): opening, the commit of a group, and what SQLite's
//! errors mean. Statements are in `write` and `read`.
//!
//! One connection writes, a few read; in WAL mode neither waits for the other. A group of batches is
//! one transaction:
//!
//! 1. All of it is written as one [`plan::Plan`]. That is the rule.
//! 2. Where the plan is refused, the transaction is rolled back and the batches are applied one by one,
//!    change by change, each in a savepoint: the refused ones get their errors, the others are kept.
//! 3. Where the backend fails, everything is rolled back and every batch gets that error.

mod plan;
mod read;
mod write;

#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _, query};
use tokio::sync::Mutex;

use super::admission::{Gate, admissible, refusal};
use super::{
    AuditLog, Batch, Change, CheckpointJournal, Durability, EpisodicMemory, Error, JournalRecord, LogRecord,
    PageRecord, ProcessRow, Standing, StateEntry, StateStore, Storage,
};
use crate::audit::{Head, Record as AuditRecord};
use crate::process::Pid;
use plan::Plan;
use write::{Refused, Writer};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/sqlite");

/// How long a lock of another connection is waited for: more than a checkpoint ever takes.
const BUSY: Duration = Duration::from_secs(10);
/// Reading connections; each is a thread while it lives.
const READERS: u32 = 3;
/// Database pages in the write-ahead log that make a commit move them into the file. Many processes
/// dirty the same index pages again and again: a long log writes each of them back once.
const CHECKPOINT_PAGES: &str = "8192";
/// The writer's page cache, in KiB as SQLite wants it: the index pages that many processes append to.
const CACHE: &str = "-16384";
/// The write-ahead log is cut back to this size once its content is in the file.
const WAL_BYTES: &str = "67108864";
/// Room for every statement text that [`write`] can make, so that each is prepared once.
const STATEMENTS: usize = 256;

/// A store in a file. See the module's text.
#[derive(Debug)]
pub struct Sqlite {
    name: String,
    path: PathBuf,
    writer: Mutex<Access>,
    readers: SqlitePool,
}

/// What may be written.
enum Access {
    Write(Box<Writer>),
    ReadOnly,
    Closed,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Write(_) => "Write",
            Self::ReadOnly => "ReadOnly",
            Self::Closed => "Closed",
        })
    }
}

impl Sqlite {
    /// Opens the file for writing, makes it where there is none (mode 0600), and brings its schema up
    /// to date.
    ///
    /// # Errors
    /// [`Error::TooNew`] (nothing is touched), [`Error::Full`], and [`Error::Backend`] for a file that
    /// is no store or cannot be used.
    pub async fn open(path: &Path, durability: Durability) -> Result<Self, Error> {
        let name = format!("sqlite:{}", path.display());
        create(path).map_err(|error| file_error(&name, error))?;
        check_version(&name, path).await?;
        let synchronous = match durability {
            Durability::Process => SqliteSynchronous::Normal,
            Durability::Power => SqliteSynchronous::Full,
        };
        let options = options(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            .pragma("journal_size_limit", WAL_BYTES)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .pragma("cache_size", CACHE)
            .statement_cache_capacity(STATEMENTS);
        let fail = |error| failure(&name, path, error);
        let mut conn = options.connect().await.map_err(fail)?;
        MIGRATIONS.run(&mut conn).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) => fail(error),
            other => Error::backend(&name, other),
        })?;
        let readers = readers(path);
        Ok(Self {
            writer: Mutex::new(Access::Write(Box::new(Writer::new(conn)))),
            path: path.to_owned(),
            readers,
            name,
        })
    }

    /// Opens a file that another process may be writing: changes nothing, refuses every commit.
    /// `None` where there is no store yet: no file, or one without a schema.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_read(path: &Path) -> Result<Option<Self>, Error> {
        let name = format!("sqlite:{}", path.display());
        match Self::standing(path).await? {
            Standing::Absent => Ok(None),
            Standing::Older { found, known } => {
                let text = format!("its schema version {found} is older than {known}: start a kernel on it once");
                Err(Error::backend(&name, text))
            }
            Standing::Current { .. } => Ok(Some(Self {
                writer: Mutex::new(Access::ReadOnly),
                path: path.to_owned(),
                readers: readers(path),
                name,
            })),
        }
    }

    /// How the file stands to this aok. Changes nothing.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn standing(path: &Path) -> Result<Standing, Error> {
        let name = format!("sqlite:{}", path.display());
        if !path.try_exists().map_err(|error| file_error(&name, error))? {
            return Ok(Standing::Absent);
        }
        let known = newest_version();
        Ok(match check_version(&name, path).await? {
            0 => Standing::Absent,
            found if found < known => Standing::Older { found, known },
            version => Standing::Current { version },
        })
    }

    fn fail(&self, error: sqlx::Error) -> Error {
        failure(&self.name, &self.path, error)
    }

    /// Limits the file to what it has now and `pages` more, so that tests can fill it.
    #[cfg(test)]
    pub(super) async fn limit_growth(&self, pages: Option<u32>) {
        let Access::Write(writer) = &mut *self.writer.lock().await else { panic!("not open for writing") };
        let count: i64 = query("PRAGMA page_count").fetch_one(&mut writer.conn).await.unwrap().get(0);
        let limit = pages.map_or(1 << 30, |pages| count + i64::from(pages));
        let pragma = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {limit}"));
        query(pragma).execute(&mut writer.conn).await.unwrap();
    }

    async fn commit_group(&self, writer: &mut Writer, batches: &[Batch]) -> Result<Vec<Result<(), Error>>, Error> {
        let plan = Plan::of_batches(batches);
        if plan.in_order() && batches.iter().all(|batch| admissible(batch).is_ok()) {
            writer.begin().await.map_err(|error| self.fail(error))?;
            match writer.write(&plan).await {
                Ok(()) => {
                    writer.commit().await.map_err(|error| self.fail(error))?;
                    return Ok(vec![Ok(()); batches.len()]);
                }
                Err(Refused::ByRecords) => writer.rollback().await,
                Err(Refused::ByBackend(error)) => return Err(self.fail(error)),
            }
        }
        self.commit_singly(writer, batches).await.map_err(|error| self.fail(error))
    }

    /// The second way of the module's text.
    async fn commit_singly(
        &self,
        writer: &mut Writer,
        batches: &[Batch],
    ) -> Result<Vec<Result<(), Error>>, sqlx::Error> {
        let mut gate = Gate::default();
        let mut results = Vec::with_capacity(batches.len());
        writer.begin().await?;
        for batch in batches {
            let mut result = gate.check(batch);
            if result.is_ok() {
                writer.run("SAVEPOINT batch").await?;
                for change in &batch.changes {
                    result = apply(writer, batch.pid, change).await?;
                    if result.is_err() {
                        writer.run("ROLLBACK TO batch").await?;
                        break;
                    }
                }
                writer.run("RELEASE batch").await?;
            }
            gate.note(batch.pid, &result);
            results.push(result);
        }
        writer.commit().await?;
        Ok(results)
    }
}

/// Applies one change; the inner result says whether the records allow it.
async fn apply(writer: &mut Writer, pid: Pid, change: &Change) -> Result<Result<(), Error>, sqlx::Error> {
    match writer.write(&Plan::of_change(pid, change)).await {
        Ok(()) => Ok(Ok(())),
        Err(Refused::ByBackend(error)) => Err(error),
        Err(Refused::ByRecords) => match change {
            Change::StatePut { scope, key, expected: Some(expected), .. } => {
                let row = query(read::STATE).bind(scope).bind(key).fetch_optional(&mut writer.conn).await?;
                let found = row.as_ref().map(read::state_of).transpose()?.map_or(0, |entry| entry.revision);
                Ok(Err(Error::Conflict { key: key.clone(), expected: *expected, found }))
            }
            change => Ok(Err(refusal(pid, change))),
        },
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).foreign_keys(false).busy_timeout(BUSY).disable_statement_logging()
}

fn readers(path: &Path) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .idle_timeout(Duration::from_secs(60))
        .test_before_acquire(false)
        .connect_lazy_with(options(path).read_only(true))
}

/// Makes the file where there is none, readable and writable by its owner only; SQLite gives the
/// files beside it the same mode.
fn create(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn newest_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// The file's schema version, 0 where it has none yet; fails for one that is too new. Changes nothing.
async fn check_version(name: &str, path: &Path) -> Result<i64, Error> {
    let fail = |error| failure(name, path, error);
    // A read-only connection leaves files beside a WAL database; where there is no log to read, the
    // file alone is all there is.
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let immutable = !Path::new(&log).exists();
    let mut conn = options(path).read_only(true).immutable(immutable).connect().await.map_err(fail)?;
    let found = version(&mut conn).await;
    conn.close().await.map_err(fail)?;
    let (found, known) = (found.map_err(fail)?, newest_version());
    if found > known { Err(Error::TooNew { path: path.to_owned(), found, known }) } else { Ok(found) }
}

async fn version(conn: &mut sqlx::SqliteConnection) -> Result<i64, sqlx::Error> {
    let table = query("SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations'").fetch_optional(&mut *conn).await?;
    if table.is_none() {
        return Ok(0);
    }
    query("SELECT coalesce(max(version), 0) FROM _sqlx_migrations").fetch_one(conn).await?.try_get(0)
}

/// What a failure of SQLite means.
fn failure(name: &str, path: &Path, error: sqlx::Error) -> Error {
    const IO: i32 = 10;
    const FULL: i32 = 13;
    const CANNOT_OPEN: i32 = 14;
    const NOT_A_DATABASE: i32 = 26;
    match error.as_database_error().map_or(0, read::primary_code) {
        FULL => Error::Full { store: name.to_owned() },
        // SQLite has no code for a quota, nor for a full disk in every place where it can meet one.
        IO | CANNOT_OPEN if !has_room(path) => Error::Full { store: name.to_owned() },
        NOT_A_DATABASE => Error::backend(name, "the file is not a store of aok: move it away or name another"),
        _ => Error::backend(name, error),
    }
}

fn file_error(name: &str, error: io::Error) -> Error {
    if is_full(&error) { Error::Full { store: name.to_owned() } } else { Error::backend(name, error) }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a small file can be written beside the store.
fn has_room(path: &Path) -> bool {
    let mut probe = path.as_os_str().to_owned();
    probe.push("-room");
    let probe = PathBuf::from(probe);
    let written = fs::File::create(&probe).and_then(|mut file| {
        file.write_all(&[0; 64 << 10])?;
        file.sync_all()
    });
    // The probe is empty or small, and the next one overwrites it.
    let _ = fs::remove_file(&probe);
    !written.is_err_and(|error| is_full(&error))
}

#[async_trait]
impl EpisodicMemory for Sqlite {
    async fn pages(&self, pid: Pid) -> Result<Vec<PageRecord>, Error> {
        read::pages(&self.readers, pid).await.map_err(|error| self.fail(error))
    }

    async fn page(&self, pid: Pid, id: u64) -> Result<Option<PageRecord>, Error> {
        read::page(&self.readers, pid, id).await.map_err(|error| self.fail(error))
    }
}

#[async_trait]
impl StateStore for Sqlite {
    async fn processes(&self) -> Result<Vec<ProcessRow>, Error> {
        read::processes(&self.readers).await.map_err(|error| self.fail(error))
    }

    async fn process(&self, pid: Pid) -> Result<Option<ProcessRow>, Error> {
        read::process(&self.readers, pid).await.map_err(|error| self.fail(error))
    }

    async fn last_pid(&self) -> Result<u64, Error> {
        read::last_pid(&self.readers).await.map_err(|error| self.fail(error))
    }

    async fn state(&self, scope: &str, key: &str) -> Result<Option<StateEntry>, Error> {
        read::state(&self.readers, scope, key).await.map_err(|error| self.fail(error))
    }

    async fn states(&self, scope: &str) -> Result<Vec<(String, StateEntry)>, Error> {
        read::states(&self.readers, scope).await.map_err(|error| self.fail(error))
    }

    async fn logs(&self, pid: Pid, skip: u64) -> Result<Vec<LogRecord>, Error> {
        read::logs(&self.readers, pid, skip).await.map_err(|error| self.fail(error))
    }
}

#[async_trait]
impl AuditLog for Sqlite {
    async fn audit_tail(&self, pid: Option<Pid>, limit: u64) -> Result<Vec<AuditRecord>, Error> {
        read::audit_tail(&self.readers, pid, limit).await.map_err(|error| self.fail(error))
    }

    async fn audit_chain(&self, pid: Pid) -> Result<Vec<AuditRecord>, Error> {
        read::audit_chain(&self.readers, pid).await.map_err(|error| self.fail(error))
    }

    async fn audit_heads(&self) -> Result<Vec<(Pid, Head)>, Error> {
        read::audit_heads(&self.readers).await.map_err(|error| self.fail(error))
    }
}

#[async_trait]
impl CheckpointJournal for Sqlite {
    async fn journal(&self, pid: Pid) -> Result<Vec<JournalRecord>, Error> {
        read::journal(&self.readers, pid).await.map_err(|error| self.fail(error))
    }
}

#[async_trait]
impl Storage for Sqlite {
    async fn commit(&self, batches: Vec<Batch>) -> Vec<Result<(), Error>> {
        if batches.is_empty() {
            return Vec::new();
        }
        let mut access = self.writer.lock().await;
        let result = match &mut *access {
            Access::Write(writer) => {
                let result = self.commit_group(writer, &batches).await;
                if result.is_err() {
                    writer.rollback().await;
                }
                result
            }
            Access::ReadOnly => Err(Error::backend(&self.name, "it is open for reading only")),
            Access::Closed => Err(Error::backend(&self.name, "it is closed")),
        };
        result.unwrap_or_else(|error| vec![Err(error); batches.len()])
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    async fn close(&self) {
        self.readers.close().await;
        if let Access::Write(writer) = std::mem::replace(&mut *self.writer.lock().await, Access::Closed) {
            // The last connection moves the log into the file. What is committed is durable without
            // that, so a failure here costs the next opening some time and nothing else.
            let _ = writer.conn.close().await;
        }
    }
}
