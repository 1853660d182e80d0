# Emit once: a dedupe key is good for as long as the events of its time are retained, through crashes, also while the ring of
# partitions turns under those who use it; and then it is free again.
use strict;
use warnings;
use Test::More;

use OutboxTest;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.poll_interval = '100ms'\n");

sub one { return $node->safe_psql('postgres', $_[0]) }
sub generation { return one('SELECT COALESCE(max(generation), 0) FROM outbox.ring') }
sub emit_once { return one("SELECT outbox.emit('once.tried', '0', dedupe_key => '$_[0]')") }

# A snapshot that is older than what is in a partition keeps it from being dropped, however long the test takes.

my $snapshot = $node->background_psql('postgres');
my $hold = sub { $snapshot->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ'); $snapshot->query_safe('SELECT count(*) FROM truth') };

# the ring turns while there are events

my $load = start_load($node, clients => 1, rate => 40, weights => { commit => 1 });

# over the turns of the ring, until its partition is dropped and not before

$hold->();
my $first = emit_once('window');
# only now, or the ring could be full already: with that snapshot it turns until it is, and no further
$node->append_conf('postgresql.conf', "outbox.retention = '2s'\n");
$node->reload;
my $drops = "SELECT count(*) FROM outbox.stored_event WHERE event_id = '$first'";
poll_until(sub { generation() > 0 }, 'the ring turns');
is(emit_once('window'), $first, 'the key is good over the turns of the ring');
$snapshot->query_safe('COMMIT');
my ($again, $retained);
my $early = 0;
poll_until(
    sub {
        # the event is looked at after the key: while it is there, so was the key
        $again = emit_once('window');
        $retained = one($drops);
        $early++ if $retained && $again ne $first;
        return $again ne $first;
    },
    'the key is free again');
is($early, 0, 'and was not while the first event is retained');
is(one($drops), 0, 'the first event is no longer retained');
my $new;
poll_until(
    sub {
        ($new, $again) = ($again, emit_once('window'));
        return one("SELECT count(*) FROM outbox.stored_event WHERE event_id = '$new'");
    },
    'the new event is retained while one looks');
is($again, $new, 'it is the new event that has the key now');

# A transaction that has looked for the partition before the ring turned, and one that comes after: the first is the one that has it

my $late = $node->background_psql('postgres');
$late->query_safe('BEGIN');
my $held = $late->query_safe("SELECT outbox.emit('once.late', '0', dedupe_key => 'late')");
# by the partition that it has locked: the ring may have turned before it had
my $number = one(q{SELECT substring(relname FROM '\d') FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    WHERE relname ~ '^dedupe_\d$' AND mode = 'RowExclusiveLock'});
poll_until(sub { generation() % 8 != $number }, 'the ring turns under an open transaction');
$hold->();    # or the event could be dropped before the other one has looked
my $waiting = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', "SELECT outbox.emit('once.waited', '0', dedupe_key => 'late')" ],
    '>', \my $answer, '2>', \my $error);
poll_until(sub { one("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%once.waited%' AND pid <> pg_backend_pid()") == 1 },
    'who uses the key waits for it');
$late->query_safe('COMMIT');
$waiting->finish;
chomp $answer;
is($answer, $held, 'and is told its event') or diag $error;
$snapshot->query_safe('COMMIT');

# many at once, over the turns of the ring: each key one event
my $dir = PostgreSQL::Test::Utils::tempdir();
PostgreSQL::Test::Utils::append_to_file("$dir/once.sql",
    "\\set k random(1, 50)\nINSERT INTO used SELECT 'k' || :k, clock_timestamp(), outbox.emit('once.crowd', '0', dedupe_key => 'k' || :k), clock_timestamp();\n");
one('CREATE TABLE used (key text, before timestamptz, event_id uuid, after timestamptz)');
$node->command_ok([ 'pgbench', '-n', '-c', 8, '-j', 2, '-t', 200, '-f', "$dir/once.sql", $node->connstr('postgres') ], 'a crowd with few keys');
# from when the first was told of an event to when the last asked who was, it had the key: nobody was told of another in between
is(one('SELECT count(*) FROM (SELECT key, min(after) AS began, max(before) AS ended, event_id FROM used GROUP BY key, event_id) a '
        . 'JOIN used b USING (key) WHERE a.event_id <> b.event_id AND b.before > a.began AND b.after < a.ended'), 0, 'each key has one event at a time');
cmp_ok(one('SELECT count(DISTINCT event_id)::float8 / count(*) FROM used'), '<', 0.9, 'and most were told of it');
$load->stop;

# through a crash of the server

$node->append_conf('postgresql.conf', "outbox.retention = '1h'\n");
$node->restart;    # and not only reloaded: the worker shall know it, too
my $kept = emit_once('crash');
crash($node);
$node->start;
is(emit_once('crash'), $kept, 'a key outlives a crash');
wait_settled($node);
my %seen;
$seen{ $_->[1]{event_id} }++ for $redis->entries('outbox:{once}');
is(scalar(grep { $_ > 1 } values %seen), 0, 'no event is published twice');
is($seen{$kept}, 1, 'and each is published');

# in a dump

my $dumps = PostgreSQL::Test::Utils::tempdir();
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/custom", 'postgres' ], 'pg_dump');
$node->safe_psql('template1', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'restored', "$dumps/custom" ], 'pg_restore');
is($node->safe_psql('restored', "SELECT outbox.emit('once.tried', '0', dedupe_key => 'crash')"), $kept, 'keys are in a dump');

done_testing();
