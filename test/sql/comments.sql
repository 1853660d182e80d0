-- Everything that belongs to the extension says what it is.
SELECT pg_describe_object(d.classid, d.objid, 0) AS object
  FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'outbox'
 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
   AND COALESCE(obj_description(d.objid, d.classid::regclass::text), '') = ''
   -- row types are their table
   AND NOT (d.classid = 'pg_type'::regclass) ORDER BY 1;
SELECT count(*) > 60 AS many FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'outbox'
 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e';
-- each column, too
SELECT attrelid::regclass AS relation, attname AS column FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
 WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND NOT a.attisdropped
   AND COALESCE(col_description(a.attrelid, a.attnum), '') = '' ORDER BY attrelid::regclass::text COLLATE "C", attnum;
-- and the roles
SELECT rolname FROM pg_roles WHERE rolname LIKE 'outbox\_%' AND COALESCE(shobj_description(oid, 'pg_authid'), '') = '' ORDER BY 1;
-- as one sentence: small letters first, no full stop
SELECT pg_describe_object(classoid, objoid, objsubid) AS object, description FROM pg_description
 WHERE (classoid = 'pg_class'::regclass AND objoid IN (SELECT oid FROM pg_class WHERE relnamespace = 'outbox'::regnamespace)
        OR classoid = 'pg_proc'::regclass AND objoid IN (SELECT oid FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace))
   AND description ~ '\.$' ORDER BY 1;
