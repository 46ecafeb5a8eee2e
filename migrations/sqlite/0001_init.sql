-- The store's tables. What grows is in row-id tables with an index on its key: rows are then written
-- in the order of their commits, whichever processes they belong to, and a group of 64 processes'
-- records fills a few database pages instead of one page of each process. What changes often is kept
-- apart from what is long: an UPDATE rewrites the whole row.

-- A process, fixed at its spawn. `spec` is the process's specification as JSON.
CREATE TABLE process (
    pid  INTEGER PRIMARY KEY,
    spec TEXT NOT NULL
) STRICT;

-- How it stands. `state` is the letter of `ps`; `exit_status` is NULL while it lives.
CREATE TABLE process_status (
    pid          INTEGER PRIMARY KEY,
    state        TEXT NOT NULL DEFAULT 'R',
    waiting_on   TEXT,
    exit_status  TEXT,
    exit_message TEXT,
    fuel         INTEGER NOT NULL DEFAULT 0,
    slices       INTEGER NOT NULL DEFAULT 0,
    tokens_in    INTEGER NOT NULL DEFAULT 0,
    tokens_cached INTEGER NOT NULL DEFAULT 0,
    tokens_out   INTEGER NOT NULL DEFAULT 0,
    micro_usd    INTEGER,
    llm_calls    INTEGER NOT NULL DEFAULT 0,
    tool_calls   INTEGER NOT NULL DEFAULT 0,
    log_bytes    INTEGER NOT NULL DEFAULT 0,
    wall_us      INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One syscall per row; `outcome` is NULL from its start to its end.
CREATE TABLE journal (
    pid        INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    call       TEXT NOT NULL,
    request    TEXT NOT NULL,
    effect     TEXT,
    started_ms INTEGER NOT NULL,
    outcome    TEXT,
    ended_ms   INTEGER,
    UNIQUE (pid, seq)
) STRICT;

-- A context page, never changed once written.
CREATE TABLE page (
    pid        INTEGER NOT NULL,
    id         INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    text       TEXT NOT NULL,
    tool_calls TEXT,
    call_id    TEXT,
    tool       TEXT,
    hash       TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    UNIQUE (pid, id)
) STRICT;

-- What changes of it.
CREATE TABLE page_meta (
    pid         INTEGER NOT NULL,
    id          INTEGER NOT NULL,
    tokens      INTEGER NOT NULL,
    exact       INTEGER NOT NULL,
    importance  REAL NOT NULL,
    pinned      INTEGER NOT NULL,
    resident    INTEGER NOT NULL,
    accessed_ms INTEGER NOT NULL,
    accesses    INTEGER NOT NULL,
    PRIMARY KEY (pid, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE state (
    scope    TEXT NOT NULL,
    key      TEXT NOT NULL,
    value    BLOB NOT NULL,
    revision INTEGER NOT NULL,
    UNIQUE (scope, key)
) STRICT;

-- A process's lines are read in row-id order.
CREATE TABLE log (
    pid     INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    at_ms   INTEGER NOT NULL,
    level   TEXT NOT NULL,
    source  TEXT NOT NULL,
    message TEXT NOT NULL
) STRICT;
CREATE INDEX log_by_pid ON log (pid);

-- The audit records of all chains. No key is unique here: a chain that was tampered with must be
-- readable as it is, row by row in row-id order, so that `audit verify` can say what happened to it.
-- `audit_head` keeps honest writers in order.
CREATE TABLE audit (
    seq      INTEGER NOT NULL,
    pid      INTEGER NOT NULL,
    at_ms    INTEGER NOT NULL,
    event    TEXT NOT NULL,
    object   TEXT NOT NULL,
    decision TEXT NOT NULL,
    by       TEXT NOT NULL,
    prev     TEXT NOT NULL,
    hash     TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_pid ON audit (pid);
CREATE INDEX audit_by_time ON audit (at_ms, pid, seq);

-- The last record of each chain, so that a cut tail is seen.
CREATE TABLE audit_head (
    pid  INTEGER PRIMARY KEY,
    seq  INTEGER NOT NULL,
    hash TEXT NOT NULL
) STRICT;
