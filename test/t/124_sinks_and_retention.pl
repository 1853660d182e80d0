# Sinks that are created when retention has dropped events already, and sinks that come with a dump.
use strict;
use warnings;
use Test::More;

use OutboxTest;

my $first = OutboxTest::Redis->new(name => 'first');
my $late = OutboxTest::Redis->new(name => 'late');
my $node = new_node(redis => $first, conf => "outbox.retention = '3s'\nmax_worker_processes = 20\n");

sub one { my ($sql, $db) = @_; return $node->safe_psql($db // 'postgres', $sql) }

sub ids_in {
    my ($redis, $database) = @_;
    $redis->cmd('SELECT', $database);
    my %at;
    for my $key ($redis->streams) { $at{ $_->[1]{event_id} } .= $_->[0] for $redis->entries($key) }
    $redis->cmd('SELECT', 0);
    return \%at;
}

# retention drops, and then stops, as a sink is paused

my $load = start_load($node, clients => 3, rate => 150, weights => { commit => 60, multi => 15, async => 15, rollback => 10 });
poll_until(sub { one('SELECT count(*) FROM truth WHERE event_id NOT IN (SELECT event_id FROM outbox.stored_event)') > 100 }, 'events are dropped', 60);
one("SELECT outbox.create_sink('brake', '" . $late->url(1) . "')");
pause_sink($node, 'postgres', 'brake');
poll_until(sub { (stat_sink($node)->{retention_held_back_by} // '') =~ /sink "brake" has not confirmed/ }, 'a paused sink holds retention back', 60);
my $stored = one('SELECT count(*) FROM outbox.stored_event');

my ($status, undef, $notice) = $node->psql('postgres', "SELECT outbox.create_sink('old', '" . $late->url(2) . "', start => '2001-01-01')");
is($status, 0, 'a sink may start long ago');
like($notice, qr/NOTICE:  sink "old" begins with what is retained, which is later than its start/, 'and is told how far back that is');
one("SELECT outbox.create_sink('all', '" . $late->url(3) . "', start => 'beginning')");
my $position = one(q{SELECT position FROM outbox.event WHERE status = 'published' ORDER BY seq DESC LIMIT 1});
one("SELECT outbox.create_sink('here', '" . $late->url(4) . "', start => '$position')");
my $dropped = one('SELECT min(ms) FROM outbox.tick WHERE sink_id = 1');
($status, undef, $notice) = $node->psql('postgres', "SELECT outbox.create_sink('gone', '" . $late->url(5) . "', start => '$dropped-0')");
isnt($status, 0, 'one cannot start with a batch that is no longer there as a whole');
like($notice, qr/is no longer retained as a whole/, 'as the error says');
$load->stop;
wait_settled($node);
for my $sink (qw(old all here)) { ok(flush($node, 'postgres', '30 s', $sink), "sink $sink is flushed") }

# all that is retained, but for what the last tick of the dropped ones had seen
my $in_old = ids_in($late, 2);
is_deeply([ sort keys %$in_old ], [ sort keys %{ ids_in($late, 3) } ], 'both have the same');
my %missing = map { $_ => 1 } grep { !$in_old->{$_} } split /\n/, one('SELECT event_id FROM outbox.stored_event');
my $base = one(q{SELECT start_ms - 1 FROM outbox.sink WHERE name = 'all'});
my $seen = one("SELECT string_agg(event_id::text, ' ') FROM outbox.stored_event e, outbox.tick t WHERE t.sink_id = 1 AND t.ms = $base "
    . 'AND pg_visible_in_snapshot(e.xid, t.snapshot)');
is_deeply([ sort keys %missing ], [ sort split / /, $seen ], 'everything since the tick that the history begins with');
cmp_ok(scalar keys %$in_old, '>', $stored / 2, 'which is most of what is retained');
is((grep { length > 20 } values %$in_old), 0, 'each event once');
my $here = ids_in($late, 4);
is_deeply([ sort keys %$here ], [ sort split /\n/, one("SELECT event_id FROM outbox.event WHERE string_to_array(position, '-')::bigint[] >= "
    . "string_to_array('$position', '-')::bigint[]") ], 'the one that starts at a position has that event and all behind it');
is(one("SELECT count(*) FROM outbox.verify('$_')"), 0, "verify finds $_ in order") for qw(old all here default);

# the brake is gone: the new sinks hold nothing back, also when they are idle at their start

one(q{SELECT outbox.drop_sink('brake')});
one("SELECT outbox.create_sink('idle', '" . $late->url(6) . "', topics => '{nothing}')");
my $newest = one('SELECT max(seq) FROM outbox.stored_event');
poll_until(sub { emit_some($node, 1); one("SELECT count(*) FROM outbox.stored_event WHERE seq <= $newest") == 0 }, 'retention goes on', 90);
pass('retention goes on');

# a dump

one('SELECT outbox.flush(NULL, NULL)');
pause_sink($node, 'postgres', 'all');
emit_some($node, 5);
flush($node);
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->command_ok([ 'pg_dump', '-h', $node->host, '-p', $node->port, '-Fc', '-f', $dump, 'postgres' ], 'the database is dumped');
one('CREATE DATABASE restored');
$node->command_ok([ 'pg_restore', '-h', $node->host, '-p', $node->port, '-d', 'restored', $dump ], 'and restored');
poll_until(sub { one('SELECT count(*) FROM outbox.worker_state() WHERE pid <> 0', 'restored') == 5 }, 'every sink of it has a worker');
is(one(q{SELECT string_agg(DISTINCT state, ' ') FROM outbox.stat_sink}, 'restored'), 'paused (restored)', 'which waits until it is told to go on');
($status, undef, $notice) = $node->psql('restored', "SELECT outbox.create_sink('new', 'redis://h')");
like($notice, qr/cannot be created in a database that was restored/, 'no sink can be added before');
is(one('SELECT string_agg(name, \' \' ORDER BY id) FROM outbox.sink', 'restored'), 'default old all here idle', 'the sinks are those of the dump');

# it is the real one: the old database is gone
one(q{SELECT outbox.pause(name) FROM outbox.sink});
poll_until(sub { one(q{SELECT count(*) FROM outbox.worker_state() WHERE state = 'paused'}) == 5 }, 'the old one is at rest');
one(q{SELECT outbox.resume(name, take_over => true) FROM outbox.sink}, 'restored');
emit_some($node, 5, 'restored');
for my $sink (qw(default old all here idle)) {
    ok(flush($node, 'restored', '30 s', $sink), "sink $sink goes on");
    # what all of them have confirmed is dropped meanwhile
    my ($status, $found, $err);
    poll_until(
        sub {
            ($status, $found, $err) = $node->psql('restored', "SELECT * FROM outbox.verify('$sink')");
            return $status == 0 || $err !~ /were dropped by retention while/;
        },
        'it is verified');
    is($status == 0 ? $found : $err, '', 'and is in order') or diag($err);
}
my $in_all = ids_in($late, 3);
is((grep { !$in_all->{$_} } split /\n/, one("SELECT event_id FROM outbox.stored_event WHERE seq > $newest", 'restored')), 0,
    'the paused one has what waited in the dump');

done_testing();
