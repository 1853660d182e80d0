# A sink's transform: the sink gets what it makes of each event, or nothing of it, also after crashes and lost data; and it can do no
# more than its owner may, for no longer than a second, whoever owns the worker.
use strict;
use warnings;
use Test::More;

use OutboxTest;

my $first = OutboxTest::Redis->new(name => 'first');
my $second = OutboxTest::Redis->new(name => 'second');
my $third = OutboxTest::Redis->new(name => 'third');
my $node = new_node(redis => $first, conf => "max_worker_processes = 16\noutbox.max_attempts = 100000\noutbox.response_timeout = '60s'\n");

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

one(<<'SQL');
CREATE ROLE shaper IN ROLE outbox_emitter;
CREATE ROLE other;
CREATE SCHEMA app;
GRANT USAGE, CREATE ON SCHEMA app TO shaper, other;
CREATE TABLE app.written (n int);
GRANT ALL ON app.written TO shaper;
SET ROLE shaper;
CREATE FUNCTION app.right_view(event jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN event->>'topic' <> 'audit' AND event->>'aggregate_id' <> 'a7'
                THEN jsonb_build_object('k', event->'payload'->'k', 'type', event->>'event_type', 'who', current_user,
                    'version', event->'version', 'headers', event->'headers', 'id', event->>'event_id') END
$$;
CREATE FUNCTION app.public_view(event jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT app.right_view(event)';
SQL
one("SELECT outbox.create_sink('shaped', '" . $second->url . "', transform => 'app.public_view')");
my $shaped_id = one(q{SELECT id FROM outbox.sink WHERE name = 'shaped'});

# what has to be there, said without the function
sub ok_shaped {
    my ($name) = @_;
    my $wanted = one(q{SELECT t.event_id || '|' || jsonb_build_object('k', t.version, 'type', e.event_type, 'who', 'shaper', 'version',
            e.version, 'headers', e.headers::jsonb, 'id', t.event_id)
        FROM truth t JOIN outbox.event e USING (event_id) WHERE t.topic <> 'audit' AND t.aggregate_id <> 'a7' ORDER BY 1});
    my $got = join "\n", sort map { my $key = $_; map { "$_->[1]{event_id}|$_->[1]{payload}" } $second->entries($key) } $second->streams;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    isnt($wanted, '', 'there is something to compare');
    is($got, $wanted, $name);
    is(one(q{SELECT * FROM outbox.verify('shaped')}), '', 'verify() agrees');
    is(one(q{SELECT count(*) FROM outbox.sink_event s JOIN truth t USING (event_id) WHERE s.sink = 'shaped'
        AND s.status <> CASE WHEN t.topic = 'audit' OR t.aggregate_id = 'a7' THEN 'filtered' ELSE 'published' END}), 0, 'and so does outbox.sink_event');
    my $behind = 0;
    for my $key ($second->streams) {
        my %last;
        for my $entry ($second->entries($key)) {
            my ($id, $fields) = @$entry;
            my ($k) = $fields->{payload} =~ /"k": (\d+)/;
            ++$behind if $k <= ($last{ $fields->{aggregate_id} } // 0);
            $last{ $fields->{aggregate_id} } = $k;
        }
    }
    is($behind, 0, 'in order');
    return;
}

my $load = start_load($node, clients => 2, rate => 200);
poll_until(sub { $second->published > 100 }, 'what it makes is published');
wait_recovered($node, kill_worker($node, 'postgres', 'KILL', $shaped_id));
my $before = $second->published;
poll_until(sub { $second->published > $before + 50 }, 'and more after a crash');
# one stream is held in the middle of it, and nothing passes what it is held at
one(<<'SQL');
SET ROLE shaper;
CREATE OR REPLACE FUNCTION app.public_view(event jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF event->>'aggregate_id' = 'a1' THEN RAISE 'not now'; END IF;
    RETURN app.right_view(event);
END
$$;
SQL
poll_until(sub { stat_sink($node, 'postgres', 'shaped')->{held_streams} == 1 }, 'it fails for one stream');
# written down first, and then shown
ok(poll_until(sub { (stat_sink($node, 'postgres', 'shaped')->{last_error} // '') =~ /^transform app\.public_view: not now$/ }, 'it is told'), 'stat_sink says why');
$before = $second->published;
poll_until(sub { $second->published > $before + 50 }, 'the others go on');
one(q{SET ROLE shaper; CREATE OR REPLACE FUNCTION app.public_view(event jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT app.right_view(event)'});
$load->stop;
wait_settled($node);
ok(flush($node, 'postgres', '30 s', 'shaped'), 'the sink is flushed');
ok_shaped('each event is there once as the transform made it, or not at all');
ok_streams($node, $first, 'the other sink has them all, as they were');
$second->cmd('FLUSHALL');
poll_until(sub { ($node->psql('postgres', q{SELECT healed FROM outbox.stat_sink WHERE sink = 'shaped'}))[1] =~ /^[1-9]/ }, 'lost data is noticed');
poll_until(sub { stat_sink($node, 'postgres', 'shaped')->{state} eq 'streaming' }, 'and appended again');
ok(flush($node, 'postgres', '30 s', 'shaped'), 'the sink is flushed');
ok_shaped('as it was');

# one that tries what it must not

$node->append_conf('postgresql.conf', "outbox.max_attempts = 2\n");
$node->reload;
one(<<'SQL');
SET ROLE shaper;
CREATE FUNCTION app.write() RETURNS void LANGUAGE plpgsql AS $$ BEGIN INSERT INTO app.written VALUES (1); END $$;
CREATE FUNCTION app.emit() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM outbox.emit('a.b', '{}'); END $$;
CREATE FUNCTION app.unlock() RETURNS void LANGUAGE plpgsql AS $$ BEGIN SET transaction_read_only = off; END $$;
CREATE FUNCTION app.become() RETURNS void LANGUAGE plpgsql AS $$ BEGIN SET ROLE postgres; END $$;
CREATE FUNCTION app.return_to() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RESET SESSION AUTHORIZATION; END $$;
CREATE FUNCTION app.attempt(event jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    CASE event->>'topic'
        WHEN 'read' THEN RETURN jsonb_agg(payload) FROM outbox.stored_event;
        WHEN 'view' THEN RETURN jsonb_agg(payload) FROM outbox.event;
        WHEN 'direct' THEN INSERT INTO app.written VALUES (1);
        WHEN 'write' THEN PERFORM app.write();
        WHEN 'unlock' THEN PERFORM app.unlock();
        WHEN 'emit' THEN PERFORM app.emit();
        WHEN 'become' THEN PERFORM app.become();
        WHEN 'return' THEN PERFORM app.return_to();
        WHEN 'raise' THEN RAISE 'no such %', event->>'aggregate_id';
        WHEN 'loop' THEN LOOP BEGIN PERFORM pg_sleep(10); EXCEPTION WHEN query_canceled THEN RAISE 'canceled'; END; END LOOP;
        WHEN 'mixed' THEN IF (event->>'payload')::int % 40 = 1 THEN RAISE 'not this one'; END IF;
        WHEN 'large' THEN RETURN to_jsonb(repeat('x', 2000000));
        ELSE RETURN to_jsonb(current_setting('search_path') || '/' || current_user);
    END CASE;
    RETURN event;
END
$$;
RESET ROLE;
SQL
one("SELECT outbox.create_sink('tried', '" . $third->url . q{', event_types => '{*.try.now}', transform => 'app.attempt(jsonb)')});
my %attempts = (
    read => qr/permission denied for view stored_event/,
    view => qr/permission denied for view event/,
    direct => qr/INSERT is not allowed in a non-volatile function/,
    write => qr/cannot execute INSERT in a read-only transaction/,
    unlock => qr/cannot set transaction read-write mode inside a read-only transaction/,
    emit => qr/cannot execute outbox\.emit\(\) in a read-only transaction/,
    become => qr/cannot set parameter "role" within security/,
    return => qr/cannot set parameter "session_authorization" within security/,
    raise => qr/^transform app\.attempt: no such thing$/,
    loop => qr/took longer than 1000 ms|canceled/,
    large => qr/what function app\.attempt\(jsonb\) returns is too large/,
    nul => qr/unsupported Unicode escape sequence|cannot be converted to text/,
);
one('SELECT ' . join ', ', map { "outbox.emit('$_.try.now', '" . ($_ eq 'nul' ? '"\u0000"' : '{}') . "', aggregate_id => 'thing')" } 'fine', sort keys %attempts);
ok(flush($node, 'postgres', '60 s', 'tried'), 'the sink comes to an end with all of them');
for my $topic (sort keys %attempts) {
    like(one("SELECT error FROM outbox.dead_letter WHERE topic = '$topic'"), $attempts{$topic}, "is a dead letter, with the reason: $topic");
}
is(one(q{SELECT count(*) FROM outbox.dead_letter WHERE topic = 'fine'}), 0, 'the others are not in the way of a good one');
is(($third->entries('outbox:{fine}'))[0][1]{payload}, '"pg_catalog, pg_temp/shaper"', 'which runs as the owner of its function');
is($third->published, 1, 'and is all that was sent');
is(one('SELECT count(*) FROM app.written'), 0, 'nothing was written');
is(one(q{SELECT * FROM outbox.verify('tried')}), '', 'verify() knows why they are not there');

# those that fail are given up alone: what is between them and behind them in the stream is sent, in order

one(q{SELECT count(outbox.emit('mixed.try.now', i::text)) FROM generate_series(1, 120) i});
ok(flush($node, 'postgres', '60 s', 'tried'), 'the sink comes to an end with a stream of which some fail');
my @good = grep { $_ % 40 != 1 } 1 .. 120;
sub payloads { my ($stream) = @_; return map { $_->[1]{payload} =~ /"payload": (\d+)/ ? $1 : '?' } $third->entries($stream) }
is_deeply([ payloads('outbox:{mixed}') ], \@good, 'the others are all there, in order');
is(one(q{SELECT string_agg(payload, ' ' ORDER BY payload::int) FROM outbox.dead_letter WHERE topic = 'mixed'}), '1 41 81', 'and no others were given up');

# a replay into other streams has what the transform makes, or fails

sub replayed {
    my ($into) = @_;
    my $id = one("SELECT outbox.replay('tried', topics => '{mixed}', into_stream => '$into')");
    poll_until(sub { one("SELECT ended_at IS NOT NULL FROM outbox.stat_replay WHERE id = $id") eq 't' }, 'the replay has ended');
    return one("SELECT concat_ws(' ', state, last_error) FROM outbox.stat_replay WHERE id = $id");
}
is(replayed('again:{%t}'), 'done', 'a replay');
is_deeply([ payloads('again:{mixed}') ], \@good, 'has what the transform makes');
one('ALTER FUNCTION app.attempt(jsonb) RENAME TO away');
like(replayed('less:{%t}'), qr/^failed /, 'without the transform it fails, and leaves nothing out');
one('ALTER FUNCTION app.away(jsonb) RENAME TO attempt');
my $sent = $third->published;

# one that is dropped, and that is replaced by somebody else's

$node->append_conf('postgresql.conf', "outbox.max_attempts = 100000\n");
$node->restart;    # and not only reloaded: no worker shall still know of two
my $definition = one(q{SELECT pg_get_functiondef('app.attempt'::regproc)});
one('DROP FUNCTION app.attempt(jsonb)');
one(q{SELECT outbox.emit('fine.try.now', '{}')});
poll_until(sub { (stat_sink($node, 'postgres', 'tried')->{last_error} // '') =~ /function app\.attempt\(jsonb\) does not exist/ }, 'it is missed');
is(stat_sink($node, 'postgres', 'tried')->{held_streams}, 1, 'the event waits');
one("SET ROLE other; $definition");
poll_until(sub { stat_sink($node, 'postgres', 'tried')->{last_error} =~ /does not belong to role "shaper" any more/ }, q{somebody else's is not called});
is($third->published, $sent, 'nothing was sent');
one("DROP FUNCTION app.attempt(jsonb); SET ROLE shaper; $definition");
ok(flush($node, 'postgres', '30 s', 'tried'), 'its owner has made it again');
is($third->published, $sent + 1, 'and the event is sent');
one(q{SELECT outbox.alter_sink('tried', transform => 'none')});
one(q{SELECT outbox.emit('fine.try.now', '{"n":  1}')});
ok(flush($node, 'postgres', '30 s', 'tried'), 'without a transform');
is(($third->entries('outbox:{fine}'))[2][1]{payload}, '{"n":  1}', 'the payload is as it was emitted');

# a dead letter that the transform has come to withhold

one(q{SET ROLE shaper; CREATE FUNCTION app.nothing(event jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS 'SELECT NULL::jsonb'});
one(q{SELECT outbox.alter_sink('tried', transform => 'app.nothing')});
$sent = $third->published;
is(one(q{SELECT outbox.redrive(sink => 'tried', topic => 'mixed')}), 3, 'what was given up is redriven');
ok(flush($node, 'postgres', '60 s', 'tried'), 'with a transform that withholds it');
is($third->published, $sent, 'it is not sent');
is(one(q{SELECT string_agg(concat_ws(' ', payload, status, position), ',' ORDER BY payload::text::int) FROM outbox.sink_event
    WHERE sink = 'tried' AND topic = 'mixed' AND status <> 'published'}), '1 filtered,41 filtered,81 filtered', 'and sink_event says so');
is(one(q{SELECT * FROM outbox.verify('tried')}), '', 'as verify() does');
ok(!log_has($node, qr/PANIC|TRAP|terminated by signal (6|11)/), 'no crash');

done_testing();
