# outbox.verify() of a database that came with a dump: what its predecessor has published since is told, what both have is found
# where the predecessor has put it.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Session;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.batch_size = 100\n");

sub one { my ($sql, $on) = @_; return ($on // $node)->safe_psql('postgres', $sql) }
sub verify {
    my ($on) = @_;
    return one('SELECT finding, stream, expected, found, event_id, entries FROM outbox.verify()', $on);
}

run_load($node, clients => 2, transactions => 30);
wait_settled($node);
poll_until(sub { one(q{SELECT ms || '-' || n FROM outbox.checkpoint}) eq stat_sink($node)->{position} }, 'it is written down');
pause_sink($node);
# again, if the tick came before they were committed
poll_until(
    sub {
        my $ticks = one('SELECT count(*) FROM outbox.tick');
        emit_some($node, 150);
        poll_until(sub { one('SELECT count(*) FROM outbox.tick') > $ticks }, 'there is a tick', 10);
        return one('SELECT count(*) FROM outbox.event WHERE position IS NULL') == 0;
    },
    'they are in a tick');
emit_some($node, 25);
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'postgres' ], 'pg_dump');
one('SELECT outbox.resume()');
poll_until(sub { flush($node) }, 'the old one publishes what is in the dump');
emit_some($node, 20);
poll_until(sub { flush($node) }, 'and more');
is(verify(), '', 'of the old database');
$node->stop;
my $copy = new_node(name => 'copy', redis => $redis, extension => 0, load => 0);
$copy->command_ok([ 'pg_restore', '-d', 'postgres', $dump ], 'pg_restore');
poll_until(sub { stat_sink($copy)->{state} eq 'paused (restored)' }, 'the sink is paused');
is(one(q{SELECT finding, split_part(detail, ';', 1), count(*) FROM outbox.verify() GROUP BY 1, 2 ORDER BY 2}, $copy),
    "extra|its event is not published yet|25\nextra|no retained event has its id|20",
    'what the old database has published since the dump is extra in the restored one');
one('SELECT outbox.resume()', $copy);
emit_some($copy, 30);
poll_until(sub { flush($copy) }, 'it goes on');
cmp_ok(one('SELECT count(*) FROM outbox.placed', $copy), '>=', 25, 'events were found in their streams');
is(one(q{SELECT finding, split_part(detail, ';', 1), count(*) FROM outbox.verify() GROUP BY 1, 2}, $copy),
    'extra|no retained event has its id|20', 'once it is the real one, only what it never had is extra');
my ($key, $placed) = split /\|/, one("SELECT 'outbox:{' || topic || '}', ms || '-' || n FROM outbox.placed LIMIT 1", $copy);
$redis->cmd('XDEL', $key, $placed);
is(one(q{SELECT stream, expected FROM outbox.verify() WHERE finding = 'missing'}, $copy), "$key|$placed",
    'an event that was found there is missing when it is gone');
$copy->stop;

# Retention has dropped a part of a batch before the dump: the event of a transaction that was open when the ring turned.

$redis = OutboxTest::Redis->new;
my $turned = new_node(name => 'turned', redis => $redis, conf => "outbox.retention = '3s'\n");
my $early = '00000000-0000-0000-0000-00000000000a';
my ($open, $keep) = map { OutboxTest::Session->new($turned) } 1 .. 2;
$open->say("BEGIN; SELECT outbox.emit('early.thing.begun', '{}', event_id => '$early');");
my $generation = one('SELECT COALESCE(max(generation), 0) FROM outbox.ring', $turned);
is(one('SELECT count(*) FROM outbox.event_0', $turned) . $generation, '00', 'it is in the first partition');
poll_until(sub { emit_some($turned, 1); one('SELECT max(generation) > 0 FROM outbox.ring', $turned) eq 't' }, 'the ring turns');
$keep->say('BEGIN; LOCK TABLE ' . join(', ', map { "outbox.tick_$_" } 1 .. 7) . ' IN ACCESS SHARE MODE;');
$open->say('COMMIT;');
ok(flush($turned), 'it is published');
my ($batch) = split /-/, one("SELECT position FROM outbox.event WHERE event_id = '$early'", $turned);
poll_until(sub { emit_some($turned, 1); one("SELECT count(*) FROM outbox.stored_event WHERE event_id = '$early'", $turned) == 0 }, 'it is dropped');
is(one("SELECT count(*) > 0 FROM outbox.tick WHERE ms = $batch", $turned), 't', 'its batch is not');
poll_until(sub { flush($turned) }, 'all is published');
is(verify($turned), '', 'the old database takes it for nothing strange');
$dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$turned->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'postgres' ], 'pg_dump');
$keep->say('COMMIT;');
$_->end for $open, $keep;
$turned->stop;
my $again = new_node(name => 'again', redis => $redis, extension => 0, load => 0);
$again->command_ok([ 'pg_restore', '-d', 'postgres', $dump ], 'pg_restore');
poll_until(sub { stat_sink($again)->{state} eq 'paused (restored)' }, 'the sink is paused');
one('SELECT outbox.resume()', $again);
emit_some($again, 10);
poll_until(sub { flush($again) }, 'it goes on');
is(verify($again), '', 'nor does the restored one');

done_testing();
