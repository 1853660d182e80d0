# Delayed events: delivered when they are due and not before, once, in order, whatever crashes, whoever commits late or cancels;
# and nothing is left of them where they waited.
use strict;
use warnings;
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.poll_interval = '60s'\n");

sub one { return $node->safe_psql('postgres', $_[0]) }

# entries of a topic in order, as [ milliseconds of the entry, payload, event id ]
sub entries {
    my ($topic) = @_;
    return map { [ (split /-/, $_->[0])[0], $_->[1]{payload}, $_->[1]{event_id} ] } $redis->entries("outbox:{$topic}");
}

sub waiting { return one('SELECT count(*) FROM outbox.delayed') }

# For what has to be done before an event is due: tries it with so many seconds, and more when that was too late. Returns the
# seconds with which it was not, or the last.
sub in_time {
    my ($sub) = @_;
    my $last;
    for my $seconds (1, 5, 25) {
        $last = $seconds;
        last if $sub->($seconds);
    }
    return $last;
}

# a database that has had no other event yet: not before it is due, and soon after. The poll would come too late

my $due = one("SELECT floor(1000 * extract(epoch FROM now() + '700 ms'))");
my $id = one("SELECT outbox.emit('timed.first', '1', deliver_at => to_timestamp($due / 1000.0))");
poll_until(sub { entries('timed') == 1 }, 'it is published');
my ($entry) = entries('timed');
is($entry->[2], $id, 'under the id that emit() returned');
cmp_ok($entry->[0], '>=', $due, 'not before it is due');
cmp_ok($entry->[0], '<', $due + 30000, 'and not when the worker would have looked by itself');

# one that is due earlier than the one that is waited for

one("SELECT outbox.emit('timed.far', '\"far\"', deliver_at => now() + '1 hour')");
$due = one("SELECT floor(1000 * extract(epoch FROM now() + '300 ms'))");
one("SELECT outbox.emit('timed.near', '\"near\"', deliver_at => to_timestamp($due / 1000.0))");
poll_until(sub { entries('timed') == 2 }, 'the earlier one is published');
$entry = (entries('timed'))[1];
is($entry->[1], '"near"', 'it wakes the worker');
cmp_ok($entry->[0] - $due, '<', 30000, 'in time');
is(waiting(), 1, 'the later one waits on');
is(one("SELECT outbox.cancel(event_id) FROM outbox.delayed_event"), 't', 'until it is cancelled');

# (what was prepared, only the poll finds)
$node->append_conf('postgresql.conf', "outbox.poll_interval = '10s'\n");
$node->reload;

# whoever commits late: after its time, when later ones have been delivered long since. And prepared

my $late = $node->background_psql('postgres');
$late->query_safe("BEGIN");
$late->query_safe("SELECT outbox.emit('late.open', '\"open\"', deliver_at => clock_timestamp() + '100 ms')");
one("BEGIN; SELECT outbox.emit('late.prepared', '\"prepared\"', deliver_at => clock_timestamp() + '100 ms'); PREPARE TRANSACTION 'late'");
one("SELECT outbox.emit('late.second', '\"second\"', deliver_at => now() + '300 ms')");
poll_until(sub { entries('late') == 1 }, 'one that is due later is published before');
$late->query_safe('COMMIT');
poll_until(sub { entries('late') == 2 }, 'one whose transaction ends after its time is published then');
one("COMMIT PREPARED 'late'");
poll_until(sub { entries('late') == 3 }, 'and one that was prepared');
is(join(' ', map { $_->[1] } entries('late')), '"second" "open" "prepared"', 'each once');

# due at the same time: in the order of emit, over all partitions; by due time first

my $order = 'order' . in_time(
    sub {
        my ($s) = @_;
        return one("BEGIN; SELECT count(outbox.emit('order$s.same', (i + 100 * p)::text, deliver_at => d)) FROM (SELECT now() + '$s s' AS d) t, "
            . "generate_series(0, 1) p, generate_series(1, 20) i; "
            . "SELECT outbox.emit('order$s.same', '0', deliver_at => now() + '$s s' - interval '100 ms'); "
            . "SELECT clock_timestamp() < now() + '$s s' - interval '100 ms'; COMMIT") =~ /^t\z/m;
    });
poll_until(sub { entries($order) == 41 }, 'they are published');
is(join(' ', map { $_->[1] } entries($order)), join(' ', 0, 1 .. 20, 101 .. 120), 'in order');

# cancelling against delivery. The one who cancels first has it; while he has not ended it is nobody's, and others pass

my $canceller = $node->background_psql('postgres');
my (@ids, $cancelled);
my $raced = 'raced' . in_time(
    sub {
        my ($s) = @_;
        @ids = map { $canceller->query_safe("SELECT outbox.emit('raced$s.$_', '\"$_\"', deliver_at => now() + '$s s')") } qw(cancelled kept);
        $canceller->query_safe('BEGIN');
        $cancelled = $canceller->query_safe("SELECT outbox.cancel('$ids[0]')");
        $canceller->query_safe('ROLLBACK') if $cancelled ne 't';
        return $cancelled eq 't';
    });
is($cancelled, 't', 'cancelled');
one("SELECT outbox.emit('$raced.other', '\"other\"', deliver_at => now() + '100 ms')");
poll_until(sub { entries($raced) == 2 }, 'others are delivered meanwhile');
is(one("SELECT outbox.cancel('$ids[1]')"), 'f', 'what is delivered cannot be cancelled');
$canceller->query_safe('ROLLBACK');
poll_until(sub { entries($raced) == 3 }, 'it is delivered when the cancelling transaction has rolled back');
my $regretted;
in_time(
    sub {
        my ($s) = @_;
        $regretted = $canceller->query_safe("SELECT outbox.emit('$raced.gone', '\"gone\"', deliver_at => now() + '$s s')");
        $cancelled = $canceller->query_safe("SELECT outbox.cancel('$regretted')");
        return $cancelled eq 't';
    });
is($cancelled, 't', 'cancelled for good');

# many of them while they fall due: each is either cancelled or delivered
one("CREATE TABLE tried (event_id uuid, cancelled boolean)");
one("INSERT INTO tried SELECT outbox.emit('crowd.due', '0', deliver_at => now() + i % 10 * '50 ms'::interval + '50 ms') FROM generate_series(1, 3000) i");
one("DO \$\$ DECLARE id uuid; BEGIN FOR id IN SELECT event_id FROM tried LOOP
         UPDATE tried SET cancelled = outbox.cancel(id) WHERE event_id = id; COMMIT; END LOOP; END \$\$");
poll_until(sub { waiting() == 0 }, 'none is left');
poll_until(sub { flush($node) }, 'what was delivered is published');
my %is_there = map { $_->[2] => 1 } entries('crowd');
my @cancelled = split /\n/, one('SELECT event_id FROM tried WHERE cancelled');
my @delivered = split /\n/, one('SELECT event_id FROM tried WHERE NOT cancelled');
is(scalar(grep { $is_there{$_} } @cancelled), 0, 'nothing that was cancelled is published: ' . @cancelled);
is(scalar(grep { !$is_there{$_} } @delivered), 0, 'everything else is: ' . @delivered);
ok(!grep({ $_->[2] eq $regretted } entries($raced)), 'nor the one that was cancelled alone');

# thousands at once, while the worker and the server are killed again and again

my $many = 12_000;
one("CREATE TABLE bulk AS SELECT outbox.emit('bulk.due', to_json(repeat(md5(i::text), 8))::text, deliver_at => clock_timestamp() + '1 s') AS event_id "
    . "FROM generate_series(1, $many) i");
my $delivered = sub { $many - one('SELECT count(*) FROM outbox.delayed') };
my $moved = 0;
my $kill_worker = sub { wait_recovered($_[0], kill_worker($_[0])) };
for my $kill ($kill_worker, $kill_worker, sub { crash($_[0]); $_[0]->start }) {
    poll_until(sub { $delivered->() > $moved || waiting() == 0 }, 'some are delivered');
    $moved = $delivered->();
    $kill->($node);
}
poll_until(sub { waiting() == 0 }, 'all are delivered');
poll_until(sub { flush($node) }, 'and published');
my %seen;
$seen{ $_->[2] }++ for entries('bulk');
is(scalar(keys %seen), $many, 'all of them');
is(scalar(grep { $_ > 1 } values %seen), 0, 'none of them twice');
is(one('SELECT count(*) FROM bulk b WHERE NOT EXISTS (SELECT FROM outbox.stored_event e WHERE e.event_id = b.event_id)'), 0,
    'and they are retained like others');

# nothing is left where they waited, and a dump that is older than the moves still sees them

one("SELECT outbox.pause('default')");
my $old = $node->background_psql('postgres');
my $seen = sub { return $old->query_safe("SELECT count(*) FROM outbox.delayed_event WHERE event_type = '$_[0].due'") };
my $swept = 'swept' . in_time(
    sub {
        my ($s) = @_;
        $old->query_safe("SELECT count(outbox.emit('swept$s.due', to_json(repeat(md5(i::text), 8))::text, deliver_at => clock_timestamp() + '$s s')) FROM generate_series(1, 6000) i");
        $old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
        return 1 if $seen->("swept$s") == 6000;
        $old->query_safe('ROLLBACK');
        return 0;
    });
is($seen->($swept), 6000, 'a snapshot that is older than the moves');
poll_until(sub { waiting() == 0 }, 'they are delivered while the sink is paused, too');
# a worker that comes back looks at once, before it says that it is paused
my $before = one('SELECT clock_timestamp()');
my $killed = kill_worker($node, 'postgres', 'TERM');
poll_until(
    sub { one("SELECT state = 'paused' AND pid NOT IN (0, $killed) AND since > '$before' FROM outbox.worker_state() WHERE sink_id = 1") eq 't' },
    'a new worker has looked');
is($seen->($swept), 6000, 'it sees them where they were');
$old->query_safe('COMMIT');
kill_worker($node, 'postgres', 'TERM');
my $size = "SELECT sum(pg_relation_size(c.oid)) FROM pg_class c WHERE relname ~ '^delayed_' AND relkind = 'r'";
poll_until(sub { one($size) < 1_100_000 }, 'its partition is truncated when nobody can see them any more');
is(one("SELECT sum(n_tup_upd) FROM pg_stat_user_tables WHERE relname ~ '^delayed_'"), 0, 'no row was ever updated');
one("SELECT outbox.resume('default')");

# a restored dump: what is due waits until somebody says that it is the real one; what the old one has delivered since is not doubled

poll_until(sub { flush($node) }, 'everything is published');
one("SELECT outbox.emit('restored.later', '4', deliver_at => now() + '1 hour')");
my $restored = 'restored' . in_time(
    sub {
        my ($s) = @_;
        $old->query_safe("SELECT outbox.emit('restored$s.due', i::text, deliver_at => now() + '$s s') FROM generate_series(1, 3) i");
        $old->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
        return 1 if $old->query_safe('SELECT count(*) FROM outbox.delayed_event') == 4;
        $old->query_safe('ROLLBACK');
        return 0;
    });
my $snapshot = $old->query_safe('SELECT pg_export_snapshot()');
my $dumps = PostgreSQL::Test::Utils::tempdir();
$node->command_ok([ 'pg_dump', '-Fc', '--snapshot', $snapshot, '-f', "$dumps/custom", 'postgres' ], 'pg_dump');
$old->query_safe('COMMIT');
poll_until(sub { entries($restored) == 3 }, 'the old database publishes them');
$node->safe_psql('template1', 'CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'restored', "$dumps/custom" ], 'pg_restore');
poll_until(sub { stat_sink($node, 'restored')->{state} eq 'paused (restored)' }, 'the sink of the copy is paused');
is($node->safe_psql('restored', 'SELECT count(*) FROM outbox.delayed'), 4, 'delayed events are in the dump');
$node->safe_psql('restored', "SELECT outbox.emit('$restored.new', '5', deliver_at => clock_timestamp() + '1 s')");
poll_until(sub { $node->safe_psql('restored', 'SELECT min(deliver_at) FILTER (WHERE event_type ~ $$new$$) < now() FROM outbox.delayed') eq 't' },
    'it is due');
is(flush($node, 'restored', '500 ms'), '', 'nothing is published');
is($node->safe_psql('restored', 'SELECT count(*) FROM outbox.delayed'), 5, 'nor delivered, however late');
cmp_ok($node->safe_psql('restored', 'SELECT overdue_seconds FROM outbox.stat_delayed'), '>', 0, 'stat_delayed says so');
one("SELECT outbox.pause('default')");
poll_until(sub { one('SELECT state FROM outbox.worker_state() WHERE sink_id = 1') eq 'paused' }, 'the old one gives up');
$node->safe_psql('restored', "SELECT outbox.resume('default', take_over => true)");
poll_until(sub { $node->safe_psql('restored', 'SELECT count(*) FROM outbox.delayed') == 1 }, 'now they are delivered');
poll_until(sub { flush($node, 'restored') }, 'and published');
is(join(' ', map { $_->[1] } entries($restored)), '1 2 3 5', 'but those that were published already are not published again');

done_testing();
