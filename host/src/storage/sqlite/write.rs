//! The one connection that writes, and its statements.
//!
//! Each statement costs a hop to SQLite's thread and back, so the rows of a table go in statements of
//! up to 64 rows; their number is a power of two, so that a few prepared statements serve any group.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments as _, AssertSqlSafe, Encode, Sqlite as Db, Type};

use super::plan::{HeadMove, Plan, StateOp};
use super::read;
use crate::audit::GENESIS;
use crate::process::ProcessSpec;
use crate::storage::{PageMeta, PageRecord};

/// The most rows of one statement.
const MAX_ROWS: usize = 64;

/// A statement that takes any number of rows.
struct Shape {
    /// Everything before the rows.
    head: &'static str,
    /// Values in a row.
    columns: usize,
    /// Everything after the rows.
    tail: &'static str,
}

const SPAWN: Shape = Shape { head: "INSERT INTO process (pid, spec) VALUES ", columns: 2, tail: "" };
const RESPEC: Shape = Shape {
    head: "UPDATE process SET spec = n.column2 FROM (VALUES ",
    columns: 2,
    tail: ") AS n WHERE process.pid = n.column1",
};
const STATUS: Shape = Shape { head: "INSERT INTO process_status (pid) VALUES ", columns: 1, tail: "" };
const USAGE: Shape = Shape {
    head: "UPDATE process_status SET fuel = n.column2, slices = n.column3, tokens_in = n.column4, \
           tokens_cached = n.column5, tokens_out = n.column6, micro_usd = n.column7, llm_calls = n.column8, \
           tool_calls = n.column9, log_bytes = n.column10, wall_us = n.column11, store_bytes = n.column12 FROM (VALUES ",
    columns: 12,
    tail: ") AS n WHERE process_status.pid = n.column1",
};
const EXIT: Shape = Shape {
    head: "UPDATE process_status SET state = 'Z', waiting_on = NULL, exit_status = n.column2, \
           exit_message = n.column3 FROM (VALUES ",
    columns: 3,
    tail: ") AS n WHERE process_status.pid = n.column1 AND process_status.exit_status IS NULL",
};
const STATE: Shape = Shape {
    head: "UPDATE process_status SET state = n.column2, waiting_on = n.column3 FROM (VALUES ",
    columns: 3,
    tail: ") AS n WHERE process_status.pid = n.column1",
};
const JOURNAL: Shape = Shape {
    head: "INSERT INTO journal (pid, seq, call, request, effect, started_ms, outcome, ended_ms) VALUES ",
    columns: 8,
    tail: " ON CONFLICT (pid, seq) DO UPDATE SET outcome = excluded.outcome, ended_ms = excluded.ended_ms \
           WHERE journal.outcome IS NULL AND excluded.outcome IS NOT NULL AND journal.call = excluded.call",
};
const PAGE: Shape = Shape {
    head: "INSERT INTO page (pid, id, seq, kind, text, tool_calls, call_id, tool, hash, created_ms) VALUES ",
    columns: 10,
    tail: "",
};
const NEW_META: Shape = Shape {
    head: "INSERT INTO page_meta (pid, id, tokens, exact, importance, pinned, resident, accessed_ms, accesses) VALUES ",
    columns: 9,
    tail: "",
};
const META: Shape = Shape {
    head: "UPDATE page_meta SET tokens = n.column3, exact = n.column4, importance = n.column5, \
           pinned = n.column6, resident = n.column7, accessed_ms = n.column8, accesses = n.column9 FROM (VALUES ",
    columns: 9,
    tail: ") AS n WHERE page_meta.pid = n.column1 AND page_meta.id = n.column2",
};
const PUT: Shape = Shape {
    head: "INSERT INTO state (scope, key, value, revision) SELECT n.column1, n.column2, n.column3, 1 FROM (VALUES ",
    columns: 3,
    tail: ") AS n WHERE TRUE ON CONFLICT (scope, key) DO UPDATE SET value = excluded.value, revision = revision + 1",
};
const PUT_NEW: Shape = Shape {
    head: "INSERT INTO state (scope, key, value, revision) SELECT n.column1, n.column2, n.column3, 1 FROM (VALUES ",
    columns: 3,
    tail: ") AS n WHERE TRUE ON CONFLICT (scope, key) DO NOTHING",
};
const PUT_OVER: Shape = Shape {
    head: "UPDATE state SET value = n.column3, revision = revision + 1 FROM (VALUES ",
    columns: 4,
    tail: ") AS n WHERE scope = n.column1 AND key = n.column2 AND revision = n.column4",
};
const LOG: Shape =
    Shape { head: "INSERT INTO log (pid, seq, at_ms, level, source, message) VALUES ", columns: 6, tail: "" };
const AUDIT: Shape = Shape {
    head: "INSERT INTO audit (seq, pid, at_ms, event, object, decision, by, prev, hash) VALUES ",
    columns: 9,
    tail: "",
};
/// Compare-and-set: a row is `(pid, first, prev, last, hash)`, and moves the head only if the head is
/// the record before `first`.
const HEAD: Shape = Shape {
    head: "INSERT INTO audit_head (pid, seq, hash) SELECT n.column1, n.column4, n.column5 FROM (VALUES ",
    columns: 5,
    tail: ") AS n LEFT JOIN audit_head AS h ON h.pid = n.column1 \
           WHERE n.column2 = coalesce(h.seq, 0) + 1 AND n.column3 = coalesce(h.hash, ?) \
           ON CONFLICT (pid) DO UPDATE SET seq = excluded.seq, hash = excluded.hash",
};

impl Shape {
    fn sql(&self, rows: usize) -> Arc<str> {
        let mut row = "(?".to_owned();
        row.push_str(&", ?".repeat(self.columns - 1));
        row.push(')');
        let mut sql = self.head.to_owned();
        for n in 0..rows {
            sql.push_str(if n == 0 { "" } else { ", " });
            sql.push_str(&row);
        }
        sql.push_str(self.tail);
        sql.into()
    }
}

/// Why a plan was not written.
pub(super) enum Refused {
    /// The records in the store contradict it.
    ByRecords,
    /// The backend failed.
    ByBackend(sqlx::Error),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        let constraint = error.as_database_error().is_some_and(|e| read::primary_code(e) == read::CONSTRAINT);
        if constraint { Self::ByRecords } else { Self::ByBackend(error) }
    }
}

/// The values of one statement.
struct Values(SqliteArguments);

impl Values {
    fn add<'t, T: Encode<'t, Db> + Type<Db>>(&mut self, value: T) -> Result<(), Refused> {
        self.0.add(value).map_err(|source| Refused::ByBackend(sqlx::Error::Encode(source)))
    }

    /// Adds a number that `admission` has found to fit.
    fn number(&mut self, value: u64) -> Result<(), Refused> {
        let value = i64::try_from(value).map_err(|source| Refused::ByBackend(sqlx::Error::Encode(source.into())))?;
        self.add(value)
    }

    fn meta(&mut self, meta: &PageMeta) -> Result<(), Refused> {
        self.add(i64::from(meta.tokens))?;
        self.add(meta.exact)?;
        self.add(f64::from(meta.importance))?;
        self.add(meta.pinned)?;
        self.add(meta.resident)?;
        self.number(meta.accessed_ms)?;
        self.add(i64::from(meta.accesses))
    }
}

/// The writing connection.
pub(super) struct Writer {
    pub(super) conn: SqliteConnection,
    /// Set while a transaction is open: a commit whose future was dropped leaves it set.
    open: bool,
    /// Statement texts by the head and tail of their shape and their number of rows.
    texts: HashMap<(&'static str, &'static str, usize), Arc<str>>,
}

impl Writer {
    pub(super) fn new(conn: SqliteConnection) -> Self {
        Self { conn, open: false, texts: HashMap::new() }
    }

    pub(super) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        if self.open {
            self.rollback().await;
        }
        self.open = true;
        // Takes the write lock at once: a later upgrade could fail half-way.
        self.run("BEGIN IMMEDIATE").await
    }

    pub(super) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.run("COMMIT").await?;
        self.open = false;
        Ok(())
    }

    /// Takes back everything since `begin`. SQLite does so itself on some errors; then there is nothing
    /// to roll back, and that this fails is no news.
    pub(super) async fn rollback(&mut self) {
        let _ = self.run("ROLLBACK").await;
        self.open = false;
    }

    pub(super) async fn run(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        sqlx::query(sql).execute(&mut self.conn).await.map(drop)
    }

    /// Writes the plan into the open transaction. Where it fails, the transaction must be rolled back.
    pub(super) async fn write(&mut self, plan: &Plan<'_>) -> Result<(), Refused> {
        self.write_processes(plan).await?;
        self.write_history(plan).await?;
        self.write_state(&plan.state).await?;
        self.write_audit(plan).await
    }

    async fn write_processes(&mut self, plan: &Plan<'_>) -> Result<(), Refused> {
        self.rows(&SPAWN, &plan.spawns, |v, spec| add_spec(v, spec)).await?;
        self.rows(&STATUS, &plan.spawns, |v, spec| v.number(spec.pid.0)).await?;
        self.rows(&RESPEC, &plan.respecs, |v, (_, spec)| add_spec(v, spec)).await?;
        self.rows(&USAGE, &plan.usage, |v, (pid, u)| {
            for number in [pid.0, u.fuel, u.slices, u.tokens_in, u.tokens_cached, u.tokens_out] {
                v.number(number)?;
            }
            match u.micro_usd {
                Some(price) => v.number(price)?,
                None => v.add(None::<i64>)?,
            }
            [u.llm_calls, u.tool_calls, u.log_bytes, u.wall_us, u.store_bytes].into_iter().try_for_each(|n| v.number(n))
        })
        .await?;
        self.rows(&EXIT, &plan.exits, |v, (pid, exit)| {
            v.number(pid.0)?;
            v.add(exit.status())?;
            v.add(exit.message())
        })
        .await?;
        self.rows(&STATE, &plan.states, |v, (pid, (state, waiting_on))| {
            v.number(pid.0)?;
            v.add(state.letter())?;
            v.add(*waiting_on)
        })
        .await
    }

    async fn write_history(&mut self, plan: &Plan<'_>) -> Result<(), Refused> {
        self.rows(&JOURNAL, &plan.journal, |v, r| {
            v.number(r.pid.0)?;
            v.number(r.seq)?;
            v.add(&*r.call)?;
            v.add(r.request.as_str())?;
            v.add(r.effect.map(read::effect_name))?;
            v.number(r.started_ms)?;
            v.add(r.outcome.as_deref())?;
            match r.ended_ms {
                Some(at) => v.number(at),
                None => v.add(None::<i64>),
            }
        })
        .await?;
        for (pid, before) in &plan.forgets {
            // Positions that no store holds are all before this one.
            let before = i64::try_from(*before).unwrap_or(i64::MAX);
            let forget = sqlx::query("DELETE FROM journal WHERE pid = ? AND seq < ?");
            let pid = i64::try_from(pid.0).unwrap_or(i64::MAX);
            forget.bind(pid).bind(before).execute(&mut self.conn).await?;
        }
        self.rows(&PAGE, &plan.pages, |v, page| add_page(v, page)).await?;
        self.rows(&NEW_META, &plan.pages, |v, page| {
            v.number(page.pid.0)?;
            v.number(page.id)?;
            v.meta(&page.meta)
        })
        .await?;
        self.rows(&META, &plan.metas, |v, ((pid, id), meta)| {
            v.number(pid.0)?;
            v.number(*id)?;
            v.meta(meta)
        })
        .await?;
        self.rows(&LOG, &plan.logs, |v, r| {
            v.number(r.pid.0)?;
            v.number(r.seq)?;
            v.number(r.at_ms)?;
            v.add(r.level.as_str())?;
            v.add(r.source.as_str())?;
            v.add(r.message.as_str())
        })
        .await
    }

    async fn write_audit(&mut self, plan: &Plan<'_>) -> Result<(), Refused> {
        self.rows(&AUDIT, &plan.audit, |v, r| {
            v.number(r.seq)?;
            v.number(r.pid.0)?;
            v.number(r.at_ms)?;
            for text in [&*r.event, &*r.object, &*r.decision, &*r.by, &*r.prev, &*r.hash] {
                v.add(text)?;
            }
            Ok(())
        })
        .await?;
        let add = |v: &mut Values, (pid, step): (&crate::process::Pid, &HeadMove<'_>)| {
            v.number(pid.0)?;
            v.number(step.first)?;
            v.add(step.prev)?;
            v.number(step.last)?;
            v.add(step.hash)
        };
        self.rows_and(&HEAD, &plan.heads, add, Some(GENESIS)).await
    }

    /// Applies state changes in their order: runs of plain puts together, the others alone.
    async fn write_state(&mut self, ops: &[StateOp<'_>]) -> Result<(), Refused> {
        let mut rest = ops;
        while let Some(op) = rest.first() {
            let plain = rest.iter().take_while(|op| matches!(op, StateOp::Put { expected: None, .. })).count();
            match op {
                StateOp::Put { expected: None, .. } => self.rows(&PUT, &rest[..plain], add_put).await?,
                StateOp::Put { expected: Some(0), .. } => self.rows(&PUT_NEW, [op], add_put).await?,
                StateOp::Put { expected: Some(revision), .. } => {
                    let add = |v: &mut Values, op: &StateOp<'_>| add_put(v, op).and_then(|()| v.number(*revision));
                    self.rows(&PUT_OVER, [op], add).await?;
                }
                StateOp::Delete { scope, key } => {
                    let delete = sqlx::query("DELETE FROM state WHERE scope = ? AND key = ?").bind(*scope).bind(*key);
                    delete.execute(&mut self.conn).await?;
                }
            }
            rest = &rest[plain.max(1)..];
        }
        Ok(())
    }

    async fn rows<T, I>(
        &mut self,
        shape: &'static Shape,
        rows: I,
        add: impl FnMut(&mut Values, T) -> Result<(), Refused>,
    ) -> Result<(), Refused>
    where
        I: IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    {
        self.rows_and(shape, rows, add, None).await
    }

    /// Writes `rows` by statements of `shape`, each of which must change as many rows as it was given.
    /// `last` is the value of a `?` in the shape's tail.
    async fn rows_and<T, I>(
        &mut self,
        shape: &'static Shape,
        rows: I,
        mut add: impl FnMut(&mut Values, T) -> Result<(), Refused>,
        last: Option<&str>,
    ) -> Result<(), Refused>
    where
        I: IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    {
        let mut rows = rows.into_iter();
        while rows.len() > 0 {
            let count = 1 << rows.len().min(MAX_ROWS).ilog2();
            let mut values = Values(SqliteArguments::default());
            values.0.reserve(count * shape.columns + 1, 0);
            for row in rows.by_ref().take(count) {
                add(&mut values, row)?;
            }
            if let Some(last) = last {
                values.add(last)?;
            }
            let text = self.texts.entry((shape.head, shape.tail, count)).or_insert_with(|| shape.sql(count));
            let sql = AssertSqlSafe(Arc::clone(text));
            let done = sqlx::query_with(sql, values.0).execute(&mut self.conn).await?;
            if done.rows_affected() != count as u64 {
                return Err(Refused::ByRecords);
            }
        }
        Ok(())
    }
}

fn add_spec(v: &mut Values, spec: &ProcessSpec) -> Result<(), Refused> {
    v.number(spec.pid.0)?;
    let json = serde_json::to_string(spec);
    v.add(json.map_err(|source| Refused::ByBackend(sqlx::Error::Encode(source.into())))?)
}

fn add_page(v: &mut Values, page: &PageRecord) -> Result<(), Refused> {
    v.number(page.pid.0)?;
    v.number(page.id)?;
    v.number(page.seq)?;
    v.add(read::kind_name(page.kind))?;
    v.add(page.text.as_str())?;
    let calls = (!page.tool_calls.is_empty()).then(|| serde_json::to_string(&page.tool_calls)).transpose();
    v.add(calls.map_err(|source| Refused::ByBackend(sqlx::Error::Encode(source.into())))?)?;
    v.add(page.answers.as_ref().map(|(call_id, _)| call_id.as_str()))?;
    v.add(page.answers.as_ref().map(|(_, tool)| tool.as_str()))?;
    v.add(page.hash.as_str())?;
    v.number(page.created_ms)
}

fn add_put(v: &mut Values, op: &StateOp<'_>) -> Result<(), Refused> {
    let (StateOp::Put { scope, key, .. } | StateOp::Delete { scope, key }) = op;
    v.add(*scope)?;
    v.add(*key)?;
    v.add(match op {
        StateOp::Put { value, .. } => *value,
        StateOp::Delete { .. } => &[],
    })
}
