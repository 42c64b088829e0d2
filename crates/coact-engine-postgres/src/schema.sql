-- What coact keeps in a database, version 1. `{schema}` stands for the schema's name.
--
-- Locks are always taken in this order, which excludes deadlocks among coact's own transactions: one realm, then leases
-- by their id. Whoever locks a lease first locks no realm.

-- The unit of order: its row is locked by whoever writes in it, until the commit, so revisions are in commit order.
CREATE TABLE {schema}.realm (
    namespace text COLLATE "C" NOT NULL,
    realm text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    -- History up to this revision may be forgotten.
    compacted bigint NOT NULL,
    PRIMARY KEY (namespace, realm)
) WITH (fillfactor = 20);

CREATE TABLE {schema}.entry (
    namespace text COLLATE "C" NOT NULL,
    realm text COLLATE "C" NOT NULL,
    dir text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    value bytea NOT NULL,
    created bigint NOT NULL,
    modified bigint NOT NULL,
    lease bigint,
    PRIMARY KEY (namespace, realm, dir, name)
);
CREATE INDEX entry_created ON {schema}.entry (namespace, realm, dir, created, name);
CREATE INDEX entry_lease ON {schema}.entry (lease) WHERE lease IS NOT NULL;

-- A lease ends when `expires_at` passes by the database's clock, and is then marked with '-infinity', so that it cannot
-- come back if the clock does. Its row stays until its entries are gone.
CREATE TABLE {schema}.lease (
    id bigint PRIMARY KEY,
    namespace text COLLATE "C" NOT NULL,
    ttl interval NOT NULL,
    expires_at timestamptz NOT NULL,
    revoked boolean NOT NULL DEFAULT false
);
CREATE INDEX lease_expires_at ON {schema}.lease (namespace, expires_at);

-- The history that watches read. `cause`: 0 put, 1 deleted, 2 expired.
CREATE TABLE {schema}.change (
    namespace text COLLATE "C" NOT NULL,
    realm text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    dir text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    cause smallint NOT NULL,
    value bytea,
    created bigint,
    lease bigint,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (namespace, realm, revision, dir, name)
);

-- The highest token seen for a resource outside of coact.
CREATE TABLE {schema}.fence (
    resource text COLLATE "C" PRIMARY KEY,
    token bigint NOT NULL
);

-- One row of an answer. `kind`: 0 committed (number: the revision), 1 refused by check `place`, 2 a lease has ended,
-- 3 the value for write `place` is no number, 4 the sum for write `place` is out of bounds, 5 an entry whose lease
-- (number) is over is in the way and must be swept, 6 the entry for read `place`, 7 the count for read `place`.
CREATE TYPE {schema}.answer AS (
    kind integer, place integer, dir text, name text, value bytea,
    created bigint, modified bigint, lease bigint, number bigint
);

-- Checks and reads, on one snapshot. `p_ck`: 0 absent, 1 created at, 2 modified at, 3 lease alive. `p_rk`: 0 get,
-- 1 first, 2 last, 3 count.
CREATE FUNCTION {schema}.look(
    p_namespace text, p_realm text,
    p_ck integer[], p_cd text[], p_cn text[], p_cv bigint[],
    p_rk integer[], p_rd text[], p_rn text[]
) RETURNS SETOF {schema}.answer LANGUAGE plpgsql STABLE AS $body$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_entry record;
    v_row {schema}.answer;
    v_none {schema}.answer;
    v_refused {schema}.answer;
    v_answers {schema}.answer[] := '{}';
    v_over bigint[] := '{}';
    v_holds boolean;
    v_alive boolean;
BEGIN
    FOR i IN 1 .. cardinality(p_ck) LOOP
        v_row := v_none;
        v_row.kind := 1;
        v_row.place := i - 1;
        IF p_ck[i] = 3 THEN
            v_holds := EXISTS (SELECT FROM {schema}.lease l
                WHERE l.id = p_cv[i] AND l.namespace = p_namespace AND l.expires_at > v_now);
        ELSE
            SELECT e.*, l.expires_at INTO v_entry FROM {schema}.entry e LEFT JOIN {schema}.lease l ON l.id = e.lease
                WHERE e.namespace = p_namespace AND e.realm = p_realm AND e.dir = p_cd[i] AND e.name = p_cn[i];
            IF v_entry.lease IS NOT NULL AND (v_entry.expires_at > v_now) IS NOT TRUE THEN
                v_over := v_over || v_entry.lease;
            END IF;
            v_holds := coalesce(CASE p_ck[i]
                WHEN 0 THEN v_entry.created IS NULL
                WHEN 1 THEN v_entry.created = p_cv[i]
                ELSE v_entry.modified = p_cv[i] END, false);
            IF v_entry.created IS NOT NULL THEN
                v_row.dir := v_entry.dir; v_row.name := v_entry.name; v_row.value := v_entry.value;
                v_row.created := v_entry.created; v_row.modified := v_entry.modified; v_row.lease := v_entry.lease;
            END IF;
        END IF;
        IF NOT v_holds AND v_refused.kind IS NULL THEN
            v_refused := v_row;
        END IF;
    END LOOP;
    IF v_refused.kind IS NULL THEN
        FOR i IN 1 .. cardinality(p_rk) LOOP
            v_row := v_none;
            v_row.place := i - 1;
            IF p_rk[i] = 3 THEN
                v_row.kind := 7;
                SELECT count(*) INTO v_row.number FROM {schema}.entry e
                    WHERE e.namespace = p_namespace AND e.realm = p_realm AND e.dir = p_rd[i];
                v_over := v_over || ARRAY(SELECT DISTINCT e.lease FROM {schema}.entry e
                    LEFT JOIN {schema}.lease l ON l.id = e.lease
                    WHERE e.namespace = p_namespace AND e.realm = p_realm AND e.dir = p_rd[i]
                      AND e.lease IS NOT NULL AND (l.expires_at > v_now) IS NOT TRUE);
            ELSE
                v_row.kind := 6;
                IF p_rk[i] = 0 THEN
                    SELECT e.*, l.expires_at INTO v_entry FROM {schema}.entry e
                        LEFT JOIN {schema}.lease l ON l.id = e.lease
                        WHERE e.namespace = p_namespace AND e.realm = p_realm AND e.dir = p_rd[i] AND e.name = p_rn[i];
                ELSIF p_rk[i] = 1 THEN
                    SELECT e.*, l.expires_at INTO v_entry FROM {schema}.entry e
                        LEFT JOIN {schema}.lease l ON l.id = e.lease
                        WHERE e.namespace = p_namespace AND e.realm = p_realm AND e.dir = p_rd[i]
                        ORDER BY e.created, e.name LIMIT 1;
                ELSE
                    SELECT e.*, l.expires_at INTO v_entry FROM {schema}.entry e
                        LEFT JOIN {schema}.lease l ON l.id = e.lease
                        WHERE e.namespace = p_namespace AND e.realm = p_realm AND e.dir = p_rd[i]
                        ORDER BY e.created DESC, e.name DESC LIMIT 1;
                END IF;
                IF v_entry.created IS NOT NULL THEN
                    v_row.dir := v_entry.dir; v_row.name := v_entry.name; v_row.value := v_entry.value;
                    v_row.created := v_entry.created; v_row.modified := v_entry.modified; v_row.lease := v_entry.lease;
                END IF;
                IF v_entry.lease IS NOT NULL AND (v_entry.expires_at > v_now) IS NOT TRUE THEN
                    v_over := v_over || v_entry.lease;
                END IF;
            END IF;
            v_answers := v_answers || v_row;
        END LOOP;
    END IF;
    IF cardinality(v_over) > 0 THEN
        RETURN QUERY SELECT 5, 0, NULL::text, NULL::text, NULL::bytea, NULL::bigint, NULL::bigint, NULL::bigint, id
            FROM unnest(v_over) id;
    ELSIF v_refused.kind IS NOT NULL THEN
        RETURN NEXT v_refused;
    ELSE
        RETURN QUERY SELECT * FROM unnest(v_answers);
        v_row := v_none;
        v_row.kind := 0;
        v_row.number := coalesce((SELECT r.revision FROM {schema}.realm r
            WHERE r.namespace = p_namespace AND r.realm = p_realm), 0);
        RETURN NEXT v_row;
    END IF;
END $body$;

-- Locks a realm's row until the end of the transaction, and makes it if there is none.
CREATE FUNCTION {schema}.hold(p_namespace text, p_realm text) RETURNS bigint LANGUAGE plpgsql AS $body$
DECLARE
    v_revision bigint;
BEGIN
    SELECT r.revision INTO v_revision FROM {schema}.realm r
        WHERE r.namespace = p_namespace AND r.realm = p_realm FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO {schema}.realm (namespace, realm, revision, compacted) VALUES (p_namespace, p_realm, 0, 0)
            ON CONFLICT DO NOTHING;
        SELECT r.revision INTO STRICT v_revision FROM {schema}.realm r
            WHERE r.namespace = p_namespace AND r.realm = p_realm FOR UPDATE;
    END IF;
    RETURN v_revision;
END $body$;

-- Checks, reads and writes, in the order of the realm. `p_wk`: 0 put, 1 delete, 2 incr.
CREATE FUNCTION {schema}.txn(
    p_namespace text, p_realm text,
    p_ck integer[], p_cd text[], p_cn text[], p_cv bigint[],
    p_rk integer[], p_rd text[], p_rn text[],
    p_wk integer[], p_wd text[], p_wn text[], p_wv bytea[], p_wl bigint[], p_wb bigint[]
) RETURNS SETOF {schema}.answer LANGUAGE plpgsql AS $body$
DECLARE
    v_row {schema}.answer;
    v_none {schema}.answer;
    v_entry record;
    v_revision bigint;
    v_id bigint;
    v_alive bigint[] := '{}';
    v_over bigint[] := '{}';
    v_text text;
    v_sum numeric;
    v_values bytea[] := p_wv;
    v_leases bigint[] := p_wl;
    v_created bigint[] := '{}';
    v_writes boolean := false;
BEGIN
    -- What is refused anyway does not queue for the realm, and costs no sync.
    IF cardinality(p_ck) > 0 THEN
        FOR v_row IN SELECT * FROM {schema}.look(p_namespace, p_realm, p_ck, p_cd, p_cn, p_cv, '{}', '{}', '{}') LOOP
            IF v_row.kind <> 0 THEN
                RETURN NEXT v_row;
                v_writes := true;
            END IF;
        END LOOP;
        IF v_writes THEN
            RETURN;
        END IF;
    END IF;
    v_revision := {schema}.hold(p_namespace, p_realm);
    -- Locked against their end, though not against their renewal, until this is committed.
    FOR v_id IN SELECT DISTINCT id FROM (
        SELECT unnest(p_wl) AS id UNION ALL
        SELECT c.v FROM unnest(p_ck, p_cv) AS c(k, v) WHERE c.k = 3
    ) ids WHERE id IS NOT NULL ORDER BY id LOOP
        PERFORM FROM {schema}.lease l
            WHERE l.id = v_id AND l.namespace = p_namespace AND l.expires_at > clock_timestamp() FOR KEY SHARE;
        IF FOUND THEN
            v_alive := v_alive || v_id;
        END IF;
    END LOOP;
    FOR v_row IN SELECT * FROM {schema}.look(p_namespace, p_realm, p_ck, p_cd, p_cn, p_cv, p_rk, p_rd, p_rn) LOOP
        IF v_row.kind IN (1, 5) THEN
            RETURN NEXT v_row;
            v_writes := true;
        ELSIF v_row.kind <> 0 THEN
            RETURN NEXT v_row;
        END IF;
    END LOOP;
    IF v_writes THEN
        RETURN;
    END IF;
    FOR i IN 1 .. cardinality(p_wk) LOOP
        SELECT e.created, e.lease, e.value, l.expires_at INTO v_entry FROM {schema}.entry e
            LEFT JOIN {schema}.lease l ON l.id = e.lease
            WHERE e.namespace = p_namespace AND e.realm = p_realm AND e.dir = p_wd[i] AND e.name = p_wn[i];
        v_created[i] := v_entry.created;
        IF v_entry.lease IS NOT NULL AND (v_entry.expires_at > clock_timestamp()) IS NOT TRUE THEN
            v_over := v_over || v_entry.lease;
        END IF;
        v_row := v_none;
        v_row.place := i - 1;
        IF p_wk[i] = 0 AND p_wl[i] IS NOT NULL AND NOT p_wl[i] = ANY (v_alive) THEN
            v_row.kind := 2;
            v_row.number := p_wl[i];
            RETURN NEXT v_row;
            RETURN;
        ELSIF p_wk[i] = 2 AND cardinality(v_over) = 0 THEN
            v_text := coalesce(encode(v_entry.value, 'escape'), '0');
            IF v_text !~ '^-?[0-9]{1,19}$' OR v_text::numeric NOT BETWEEN -9223372036854775808 AND 9223372036854775807
            THEN
                v_row.kind := 3;
                RETURN NEXT v_row;
                RETURN;
            END IF;
            v_sum := v_text::numeric + p_wb[i];
            IF v_sum NOT BETWEEN -9223372036854775808 AND 9223372036854775807 THEN
                v_row.kind := 4;
                v_row.number := v_text::bigint;
                RETURN NEXT v_row;
                RETURN;
            END IF;
            v_values[i] := decode(v_sum::text, 'escape');
            v_leases[i] := v_entry.lease;
        END IF;
        v_writes := v_writes OR p_wk[i] <> 1 OR v_entry.created IS NOT NULL;
    END LOOP;
    IF cardinality(v_over) > 0 THEN
        RETURN QUERY SELECT 5, 0, NULL::text, NULL::text, NULL::bytea, NULL::bigint, NULL::bigint, NULL::bigint, id
            FROM unnest(v_over) id;
        RETURN;
    END IF;
    IF v_writes THEN
        UPDATE {schema}.realm r SET revision = r.revision + 1 WHERE r.namespace = p_namespace AND r.realm = p_realm
            RETURNING r.revision INTO v_revision;
        FOR i IN 1 .. cardinality(p_wk) LOOP
            IF p_wk[i] = 1 THEN
                IF v_created[i] IS NOT NULL THEN
                    DELETE FROM {schema}.entry e
                        WHERE e.namespace = p_namespace AND e.realm = p_realm AND e.dir = p_wd[i] AND e.name = p_wn[i];
                    INSERT INTO {schema}.change (namespace, realm, revision, dir, name, cause)
                        VALUES (p_namespace, p_realm, v_revision, p_wd[i], p_wn[i], 1);
                END IF;
            ELSE
                IF v_created[i] IS NULL THEN
                    INSERT INTO {schema}.entry VALUES
                        (p_namespace, p_realm, p_wd[i], p_wn[i], v_values[i], v_revision, v_revision, v_leases[i]);
                ELSE
                    UPDATE {schema}.entry e SET value = v_values[i], modified = v_revision, lease = v_leases[i]
                        WHERE e.namespace = p_namespace AND e.realm = p_realm AND e.dir = p_wd[i] AND e.name = p_wn[i];
                END IF;
                INSERT INTO {schema}.change (namespace, realm, revision, dir, name, cause, value, created, lease)
                    VALUES (p_namespace, p_realm, v_revision, p_wd[i], p_wn[i], 0, v_values[i],
                            coalesce(v_created[i], v_revision), v_leases[i]);
            END IF;
        END LOOP;
    END IF;
    v_row := v_none;
    v_row.kind := 0;
    v_row.number := v_revision;
    RETURN NEXT v_row;
END $body$;

-- Ends leases, if their time is over, for good. Waits for transactions that rely on them.
CREATE FUNCTION {schema}.finish(p_namespace text, p_leases bigint[]) RETURNS void LANGUAGE plpgsql AS $body$
DECLARE
    v_id bigint;
BEGIN
    FOR v_id IN SELECT DISTINCT id FROM unnest(p_leases) id ORDER BY id LOOP
        PERFORM FROM {schema}.lease l
            WHERE l.id = v_id AND l.namespace = p_namespace AND l.expires_at <= clock_timestamp() FOR UPDATE;
        IF FOUND THEN
            UPDATE {schema}.lease l SET expires_at = '-infinity' WHERE l.id = v_id AND l.expires_at <> '-infinity';
        END IF;
    END LOOP;
END $body$;

-- Deletes what ended leases have left in a realm, all at one revision; first ends these leases if their time is over.
-- Returns the revision, or null if there was nothing.
CREATE FUNCTION {schema}.sweep(p_namespace text, p_realm text, p_leases bigint[]) RETURNS bigint
LANGUAGE plpgsql AS $body$
DECLARE
    v_revision bigint;
BEGIN
    -- Of many who come for the same leases, only the first one locks the realm.
    IF cardinality(p_leases) = 0 AND NOT EXISTS (SELECT FROM {schema}.lease l JOIN {schema}.entry e ON e.lease = l.id
        WHERE l.namespace = p_namespace AND l.expires_at = '-infinity'
          AND e.namespace = p_namespace AND e.realm = p_realm) THEN
        RETURN NULL;
    END IF;
    PERFORM {schema}.hold(p_namespace, p_realm);
    PERFORM {schema}.finish(p_namespace, p_leases);
    PERFORM FROM {schema}.lease l JOIN {schema}.entry e ON e.lease = l.id
        WHERE l.namespace = p_namespace AND l.expires_at = '-infinity'
          AND e.namespace = p_namespace AND e.realm = p_realm LIMIT 1;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE {schema}.realm r SET revision = r.revision + 1 WHERE r.namespace = p_namespace AND r.realm = p_realm
        RETURNING r.revision INTO v_revision;
    WITH gone AS (
        DELETE FROM {schema}.entry e USING {schema}.lease l
            WHERE l.namespace = p_namespace AND l.expires_at = '-infinity' AND e.lease = l.id
              AND e.namespace = p_namespace AND e.realm = p_realm
            RETURNING e.dir, e.name, l.revoked
    )
    INSERT INTO {schema}.change (namespace, realm, revision, dir, name, cause)
        SELECT p_namespace, p_realm, v_revision, gone.dir, gone.name, CASE WHEN gone.revoked THEN 1 ELSE 2 END FROM gone;
    RETURN v_revision;
END $body$;

-- Ends the leases whose time is over, passing by those that somebody is busy with, and forgets those that have left
-- nothing. Returns the realms to sweep, and in how many milliseconds the next lease ends (null: there is none).
CREATE FUNCTION {schema}.reap(p_namespace text, OUT realms text[], OUT next bigint) LANGUAGE plpgsql AS $body$
DECLARE
    v_expired bigint[];
BEGIN
    realms := '{}';
    IF EXISTS (SELECT FROM {schema}.lease l WHERE l.namespace = p_namespace AND l.expires_at <= clock_timestamp()) THEN
        v_expired := ARRAY(SELECT l.id FROM {schema}.lease l
            WHERE l.namespace = p_namespace AND l.expires_at <= clock_timestamp()
            ORDER BY l.id LIMIT 1000 FOR UPDATE SKIP LOCKED);
        DELETE FROM {schema}.lease l WHERE l.id = ANY (v_expired)
            AND NOT EXISTS (SELECT FROM {schema}.entry e WHERE e.lease = l.id);
        UPDATE {schema}.lease l SET expires_at = '-infinity' WHERE l.id = ANY (v_expired) AND l.expires_at <> '-infinity';
        realms := ARRAY(SELECT DISTINCT e.realm FROM {schema}.lease l JOIN {schema}.entry e ON e.lease = l.id
            WHERE l.namespace = p_namespace AND l.expires_at = '-infinity' AND e.namespace = p_namespace);
    END IF;
    SELECT ceil(extract(epoch FROM min(l.expires_at) - clock_timestamp()) * 1000)::bigint INTO next
        FROM {schema}.lease l WHERE l.namespace = p_namespace AND l.expires_at > '-infinity';
END $body$;

-- Ends a lease at once. Returns the realms to sweep.
CREATE FUNCTION {schema}.revoke(p_namespace text, p_lease bigint) RETURNS text[] LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM FROM {schema}.lease l WHERE l.id = p_lease AND l.namespace = p_namespace FOR UPDATE;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    UPDATE {schema}.lease l SET revoked = l.expires_at > clock_timestamp(), expires_at = '-infinity'
        WHERE l.id = p_lease AND l.expires_at <> '-infinity';
    RETURN ARRAY(SELECT DISTINCT e.realm FROM {schema}.entry e WHERE e.lease = p_lease);
END $body$;

-- Declares the history of a realm up to a revision forgotten. A call of its own deletes it, without holding the realm.
CREATE FUNCTION {schema}.compact(p_namespace text, p_realm text, p_revision bigint) RETURNS void LANGUAGE sql AS $body$
    UPDATE {schema}.realm r SET compacted = least(p_revision, r.revision)
        WHERE r.namespace = p_namespace AND r.realm = p_realm AND r.compacted < least(p_revision, r.revision);
$body$;

CREATE FUNCTION {schema}.delete_compacted(p_namespace text, p_realm text) RETURNS void LANGUAGE sql AS $body$
    DELETE FROM {schema}.change c USING {schema}.realm r
        WHERE r.namespace = p_namespace AND r.realm = p_realm
          AND c.namespace = p_namespace AND c.realm = p_realm AND c.revision <= r.compacted;
$body$;

-- The realms of a namespace whose history is too old or too long, and up to where it may be forgotten.
CREATE FUNCTION {schema}.overlong(p_namespace text, p_age interval, p_revisions bigint)
RETURNS TABLE (realm text, cut bigint) LANGUAGE sql STABLE AS $body$
    SELECT due.realm, due.cut FROM (
        SELECT r.realm, r.compacted, greatest(
            r.revision - p_revisions,
            -- Times are in the order of revisions, so the oldest change that is young enough divides them.
            coalesce((SELECT c.revision - 1 FROM {schema}.change c
                WHERE c.namespace = p_namespace AND c.realm = r.realm AND c.at > clock_timestamp() - p_age
                ORDER BY c.revision LIMIT 1), r.revision)) AS cut
        FROM {schema}.realm r WHERE r.namespace = p_namespace AND r.compacted < r.revision
    ) due WHERE due.cut > due.compacted;
$body$;

-- For the transactions of others: refuses a token that is older than one seen before for the resource.
CREATE FUNCTION {schema}.fence(resource text, token bigint) RETURNS void LANGUAGE plpgsql AS $body$
DECLARE
    v_seen bigint;
BEGIN
    INSERT INTO {schema}.fence AS f (resource, token) VALUES ($1, $2)
        ON CONFLICT ON CONSTRAINT fence_pkey DO UPDATE SET token = $2 WHERE f.token <= $2;
    IF NOT FOUND THEN
        SELECT f.token INTO v_seen FROM {schema}.fence f WHERE f.resource = $1;
        RAISE EXCEPTION 'token % for % is over: % was seen', $2, $1, v_seen
            USING ERRCODE = 'CF001', HINT = 'The lock or leadership passed on to somebody else: stop.';
    END IF;
END $body$;
