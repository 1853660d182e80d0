# What the extension is made of in a database, as text: equal texts are equal objects.
#
#   catalog($node, $db)        lines, one for each object or property of one: what belongs to the extension, and what is in its schema
#
# Everything that pg_dump, a user or the library could see of it is in there; numbers that differ from database to database are not.
package OutboxTest::Catalog;

use strict;
use warnings;
use Exporter qw(import);

our @EXPORT = qw(catalog);

sub catalog {
    my ($node, $db) = @_;
    return [ split /\n/, $node->safe_psql($db, sql()) ];
}

# Each query gives (what, property). Oids appear as names, sets in the order of their text.
sub sql {
    return <<'SQL';
SET search_path = pg_catalog;
SET standard_conforming_strings = on;
WITH extension AS (SELECT * FROM pg_extension WHERE extname = 'outbox'),
relation AS (SELECT c.*, format('%s %s', c.relkind, c.oid::regclass) AS what FROM pg_class c
              WHERE relnamespace = 'outbox'::regnamespace),
described(what, property) AS (
    SELECT 'extension', format('version %s, of %s, %s, relocatable %s', extversion, extowner::regrole, extnamespace::regnamespace, extrelocatable)
      FROM extension
    -- what pg_dump takes along
    UNION ALL SELECT 'extension', format('dumps %s where "%s"', tab::regclass, condition)
      FROM extension, unnest(extconfig, extcondition) AS config(tab, condition)
    UNION ALL SELECT 'extension', 'has ' || pg_describe_object(classid, objid, objsubid)
      FROM pg_depend, extension WHERE refclassid = 'pg_extension'::regclass AND refobjid = extension.oid AND deptype = 'e'
    UNION ALL SELECT 'schema', format('of %s, %s, %s', nspowner::regrole, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(nspacl) a),
        obj_description(oid, 'pg_namespace')) FROM pg_namespace WHERE nspname = 'outbox'
    UNION ALL SELECT what, format('of %s, %s, %s, %s, rls %s %s, identity %s, %s', relowner::regrole,
        (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(relacl) a), relpersistence, reloptions, relrowsecurity, relforcerowsecurity,
        relreplident, obj_description(oid, 'pg_class')) FROM relation
    -- with those that were dropped: the library knows columns by their numbers
    UNION ALL SELECT what, format('column %s %s %s, dropped %s, not null %s, default %s, %s%s, collation %s, storage %s, compression %s, %s, %s',
        attnum, attname, format_type(atttypid, atttypmod), attisdropped, attnotnull, pg_get_expr(adbin, adrelid), attidentity, attgenerated,
        attcollation::regcollation, attstorage, attcompression, attacl, col_description(attrelid, attnum))
      FROM pg_attribute a JOIN relation r ON r.oid = attrelid LEFT JOIN pg_attrdef d ON adrelid = attrelid AND adnum = attnum
     WHERE attnum > 0 AND relkind <> 'i'
    UNION ALL SELECT what, format('constraint %s %s', conname, pg_get_constraintdef(c.oid)) FROM pg_constraint c JOIN relation r ON r.oid = conrelid
    UNION ALL SELECT what, format('%s, valid %s, clustered %s', pg_get_indexdef(r.oid), indisvalid, indisclustered)
      FROM pg_index i JOIN relation r ON r.oid = indexrelid
    UNION ALL SELECT what, pg_get_viewdef(oid) FROM relation WHERE relkind = 'v'
    UNION ALL SELECT what, pg_get_ruledef(w.oid) FROM pg_rewrite w JOIN relation r ON r.oid = ev_class WHERE relkind <> 'v'
    UNION ALL SELECT what, format('%s from %s by %s, %s to %s, cache %s, cycle %s', seqtypid::regtype, seqstart, seqincrement, seqmin, seqmax,
        seqcache, seqcycle) FROM pg_sequence s JOIN relation r ON r.oid = seqrelid
    UNION ALL SELECT what, pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN relation r ON r.oid = tgrelid
    UNION ALL SELECT what, 'policy ' || polname FROM pg_policy p JOIN relation r ON r.oid = polrelid
    UNION ALL SELECT p.oid::regprocedure::text, format('of %s, %s, %s, %s', proowner::regrole,
        (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(proacl) a), obj_description(p.oid, 'pg_proc'), pg_get_functiondef(p.oid))
      FROM pg_proc p WHERE pronamespace = 'outbox'::regnamespace AND prokind <> 'a'
    UNION ALL SELECT 'type ' || oid::regtype, format('%s of %s', typtype, typowner::regrole) FROM pg_type
     WHERE typnamespace = 'outbox'::regnamespace AND typrelid = 0
    -- what a dump takes for the extension's own rights, and leaves out
    UNION ALL SELECT pg_describe_object(classoid, objoid, i.objsubid),
        format('began with %s', (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(initprivs) a))
      FROM pg_init_privs i JOIN pg_depend ON classid = classoid AND objid = objoid AND deptype = 'e'
      JOIN extension e ON refclassid = 'pg_extension'::regclass AND refobjid = e.oid
)
SELECT line FROM (SELECT what || ': ' || replace(property, E'\n', '\n') AS line FROM described) l ORDER BY line COLLATE "C";
SQL
}

1;
