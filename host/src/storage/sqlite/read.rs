//! Reading: the queries of the roles, and rows back into records.

use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Row as _, query};

use super::super::{JournalRecord, LogRecord, PageKind, PageMeta, PageRecord, ProcessRow, StateEntry};
use crate::abi::Effect;
use crate::audit::{Head, Record as AuditRecord};
use crate::process::{Exit, Pid, ProcessState, Usage};

/// SQLite's primary result code for a broken constraint.
pub(super) const CONSTRAINT: i32 = 19;

/// A SQLite error's primary result code, 0 where it has none.
pub(super) fn primary_code(error: &dyn DatabaseError) -> i32 {
    // Extended codes hold the primary one in their low byte.
    error.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or(0) & 0xff
}

const KINDS: [(PageKind, &str); 10] = [
    (PageKind::System, "system"),
    (PageKind::Tools, "tools"),
    (PageKind::Task, "task"),
    (PageKind::Note, "note"),
    (PageKind::User, "user"),
    (PageKind::Assistant, "assistant"),
    (PageKind::ToolCall, "tool-call"),
    (PageKind::ToolResult, "tool-result"),
    (PageKind::Recalled, "recalled"),
    (PageKind::Summary, "summary"),
];

const EFFECTS: [(Effect, &str); 4] = [
    (Effect::Pure, "pure"),
    (Effect::ReadOnly, "read-only"),
    (Effect::Idempotent, "idempotent"),
    (Effect::Destructive, "destructive"),
];

pub(super) fn kind_name(kind: PageKind) -> &'static str {
    KINDS.iter().find(|(k, _)| *k == kind).map_or("note", |(_, name)| name)
}

pub(super) fn effect_name(effect: Effect) -> &'static str {
    EFFECTS.iter().find(|(e, _)| *e == effect).map_or("destructive", |(_, name)| name)
}

type Result<T> = std::result::Result<T, sqlx::Error>;

/// A value in the store that this kernel did not write.
fn corrupt(what: impl Into<String>) -> sqlx::Error {
    sqlx::Error::Decode(what.into().into())
}

fn number(row: &SqliteRow, column: &'static str) -> Result<u64> {
    let value: i64 = row.try_get(column)?;
    u64::try_from(value).map_err(|_| corrupt(format!("column {column} holds {value}")))
}

fn small(row: &SqliteRow, column: &'static str) -> Result<u32> {
    let value: i64 = row.try_get(column)?;
    u32::try_from(value).map_err(|_| corrupt(format!("column {column} holds {value}")))
}

fn pid(row: &SqliteRow) -> Result<Pid> {
    number(row, "pid").map(Pid)
}

/// A number of a query: one too large to be stored finds nothing.
fn key(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The query for pages, ended by the condition.
macro_rules! pages_where {
    ($condition:literal) => {
        concat!(
            "SELECT page.pid, page.id, seq, kind, text, tool_calls, call_id, tool, hash, created_ms, tokens, exact, ",
            "importance, pinned, resident, accessed_ms, accesses ",
            "FROM page JOIN page_meta ON page_meta.pid = page.pid AND page_meta.id = page.id WHERE ",
            $condition
        )
    };
}

const PAGES: &str = pages_where!("page.pid = ? ORDER BY page.id");
const PAGE: &str = pages_where!("page.pid = ? AND page.id = ?");

pub(super) async fn pages(pool: &SqlitePool, pid: Pid) -> Result<Vec<PageRecord>> {
    let rows = query(PAGES).bind(key(pid.0)).fetch_all(pool).await?;
    rows.iter().map(page_of).collect()
}

pub(super) async fn page(pool: &SqlitePool, pid: Pid, id: u64) -> Result<Option<PageRecord>> {
    let row = query(PAGE).bind(key(pid.0)).bind(key(id)).fetch_optional(pool).await?;
    row.as_ref().map(page_of).transpose()
}

fn page_of(row: &SqliteRow) -> Result<PageRecord> {
    let kind: &str = row.try_get("kind")?;
    let kind = KINDS.iter().find(|(_, name)| *name == kind).ok_or_else(|| corrupt(format!("page kind {kind}")))?.0;
    let calls: Option<&str> = row.try_get("tool_calls")?;
    let tool_calls = match calls {
        Some(json) => serde_json::from_str(json).map_err(|e| corrupt(format!("tool calls of a page: {e}")))?,
        None => Vec::new(),
    };
    let call_id: Option<String> = row.try_get("call_id")?;
    let tool: Option<String> = row.try_get("tool")?;
    // Exact: the column holds what was an `f32`.
    #[expect(clippy::cast_possible_truncation, reason = "the value was an f32 when it was written")]
    let importance = row.try_get::<f64, _>("importance")? as f32;
    Ok(PageRecord {
        pid: pid(row)?,
        id: number(row, "id")?,
        seq: number(row, "seq")?,
        kind,
        text: row.try_get("text")?,
        tool_calls,
        answers: call_id.zip(tool),
        meta: PageMeta {
            tokens: small(row, "tokens")?,
            exact: row.try_get("exact")?,
            importance,
            pinned: row.try_get("pinned")?,
            resident: row.try_get("resident")?,
            accessed_ms: number(row, "accessed_ms")?,
            accesses: small(row, "accesses")?,
        },
        hash: row.try_get("hash")?,
        created_ms: number(row, "created_ms")?,
    })
}

const PROCESSES: &str = "SELECT * FROM process JOIN process_status USING (pid) ORDER BY pid";
const PROCESS: &str = "SELECT * FROM process JOIN process_status USING (pid) WHERE pid = ?";

pub(super) async fn processes(pool: &SqlitePool) -> Result<Vec<ProcessRow>> {
    query(PROCESSES).fetch_all(pool).await?.iter().map(process_of).collect()
}

pub(super) async fn process(pool: &SqlitePool, pid: Pid) -> Result<Option<ProcessRow>> {
    let row = query(PROCESS).bind(key(pid.0)).fetch_optional(pool).await?;
    row.as_ref().map(process_of).transpose()
}

fn process_of(row: &SqliteRow) -> Result<ProcessRow> {
    let pid = pid(row)?;
    let spec: &str = row.try_get("spec")?;
    let state: &str = row.try_get("state")?;
    let status: Option<&str> = row.try_get("exit_status")?;
    let message: Option<String> = row.try_get("exit_message")?;
    let exit = match (status, message.unwrap_or_default()) {
        (None, _) => None,
        (Some("success"), message) => Some(Exit::Success(message)),
        (Some("failure"), message) => Some(Exit::Failure(message)),
        (Some("killed"), message) => Some(Exit::Killed(message)),
        (Some("over-quota"), message) => Some(Exit::OverQuota(message)),
        (Some(other), _) => return Err(corrupt(format!("exit status {other} of process {pid}"))),
    };
    let price: Option<i64> = row.try_get("micro_usd")?;
    Ok(ProcessRow {
        spec: serde_json::from_str(spec).map_err(|e| corrupt(format!("specification of process {pid}: {e}")))?,
        state: ProcessState::from_letter(state).ok_or_else(|| corrupt(format!("state {state} of process {pid}")))?,
        waiting_on: row.try_get("waiting_on")?,
        usage: Usage {
            fuel: number(row, "fuel")?,
            slices: number(row, "slices")?,
            tokens_in: number(row, "tokens_in")?,
            tokens_cached: number(row, "tokens_cached")?,
            tokens_out: number(row, "tokens_out")?,
            micro_usd: price.map(|_| number(row, "micro_usd")).transpose()?,
            llm_calls: number(row, "llm_calls")?,
            tool_calls: number(row, "tool_calls")?,
            log_bytes: number(row, "log_bytes")?,
            store_bytes: number(row, "store_bytes")?,
            wall_us: number(row, "wall_us")?,
        },
        exit,
    })
}

pub(super) async fn last_pid(pool: &SqlitePool) -> Result<u64> {
    let row = query("SELECT coalesce(max(pid), 0) AS pid FROM process").fetch_one(pool).await?;
    number(&row, "pid")
}

pub(super) const STATE: &str = "SELECT value, revision FROM state WHERE scope = ? AND key = ?";

pub(super) async fn state(pool: &SqlitePool, scope: &str, name: &str) -> Result<Option<StateEntry>> {
    let row = query(STATE).bind(scope).bind(name).fetch_optional(pool).await?;
    row.as_ref().map(state_of).transpose()
}

pub(super) async fn states(pool: &SqlitePool, scope: &str) -> Result<Vec<(String, StateEntry)>> {
    let rows = query("SELECT key, value, revision FROM state WHERE scope = ? ORDER BY key");
    let rows = rows.bind(scope).fetch_all(pool).await?;
    rows.iter().map(|row| Ok((row.try_get("key")?, state_of(row)?))).collect()
}

pub(super) fn state_of(row: &SqliteRow) -> Result<StateEntry> {
    Ok(StateEntry { value: row.try_get("value")?, revision: number(row, "revision")? })
}

pub(super) async fn logs(pool: &SqlitePool, pid: Pid, skip: u64) -> Result<Vec<LogRecord>> {
    let logs = query("SELECT * FROM log WHERE pid = ? ORDER BY rowid LIMIT -1 OFFSET ?");
    let rows = logs.bind(key(pid.0)).bind(key(skip)).fetch_all(pool).await?;
    let line = |row: &SqliteRow| {
        Ok(LogRecord {
            pid: self::pid(row)?,
            seq: number(row, "seq")?,
            at_ms: number(row, "at_ms")?,
            level: row.try_get("level")?,
            source: row.try_get("source")?,
            message: row.try_get("message")?,
        })
    };
    rows.iter().map(line).collect()
}

pub(super) async fn journal(pool: &SqlitePool, pid: Pid) -> Result<Vec<JournalRecord>> {
    let rows = query("SELECT * FROM journal WHERE pid = ? ORDER BY seq").bind(key(pid.0)).fetch_all(pool).await?;
    rows.iter().map(journal_of).collect()
}

fn journal_of(row: &SqliteRow) -> Result<JournalRecord> {
    let effect = match row.try_get::<Option<&str>, _>("effect")? {
        None => None,
        Some(name) => {
            let known = EFFECTS.iter().find(|(_, known)| *known == name);
            Some(known.ok_or_else(|| corrupt(format!("effect {name} in the journal")))?.0)
        }
    };
    let ended: Option<i64> = row.try_get("ended_ms")?;
    Ok(JournalRecord {
        pid: pid(row)?,
        seq: number(row, "seq")?,
        call: row.try_get::<String, _>("call")?.into(),
        request: row.try_get("request")?,
        effect,
        started_ms: number(row, "started_ms")?,
        outcome: row.try_get("outcome")?,
        ended_ms: ended.map(|_| number(row, "ended_ms")).transpose()?,
    })
}

const TAIL: &str = "SELECT * FROM audit ORDER BY at_ms DESC, pid DESC, seq DESC LIMIT ?";
const TAIL_OF: &str = "SELECT * FROM audit WHERE pid = ?2 ORDER BY at_ms DESC, pid DESC, seq DESC LIMIT ?1";

pub(super) async fn audit_tail(pool: &SqlitePool, pid: Option<Pid>, limit: u64) -> Result<Vec<AuditRecord>> {
    let newest_first = match pid {
        None => query(TAIL).bind(key(limit)).fetch_all(pool).await?,
        Some(pid) => query(TAIL_OF).bind(key(limit)).bind(key(pid.0)).fetch_all(pool).await?,
    };
    newest_first.iter().rev().map(audit_of).collect()
}

pub(super) async fn audit_chain(pool: &SqlitePool, pid: Pid) -> Result<Vec<AuditRecord>> {
    let rows = query("SELECT * FROM audit WHERE pid = ? ORDER BY rowid").bind(key(pid.0)).fetch_all(pool).await?;
    rows.iter().map(audit_of).collect()
}

/// Reads a record whatever was done to it, so that its hash can tell: a negative number wraps, and
/// text that is none is read as far as it goes.
fn audit_of(row: &SqliteRow) -> Result<AuditRecord> {
    let number = |column: &'static str| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
    let text = |column: &'static str| {
        row.try_get_unchecked::<&[u8], _>(column).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    Ok(AuditRecord {
        seq: number("seq")?,
        pid: Pid(number("pid")?),
        at_ms: number("at_ms")?,
        event: text("event")?.into(),
        object: text("object")?,
        decision: text("decision")?.into(),
        by: text("by")?.into(),
        prev: text("prev")?.into(),
        hash: text("hash")?.into(),
    })
}

pub(super) async fn audit_heads(pool: &SqlitePool) -> Result<Vec<(Pid, Head)>> {
    let rows = query("SELECT * FROM audit_head ORDER BY pid").fetch_all(pool).await?;
    let head = |row: &SqliteRow| {
        let seq = row.try_get::<i64, _>("seq")?.cast_unsigned();
        Ok((pid(row)?, Head { seq, hash: row.try_get::<String, _>("hash")?.into() }))
    };
    rows.iter().map(head).collect()
}
