# Old events go by whole partitions, and only when every one of them is in its stream. What has not been published stays,
# whatever holds it up: a pause, an open transaction, a stream that refuses it.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Positions;
use OutboxTest::Session;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.retention = '2s'\noutbox.max_attempts = 1000000\noutbox.retry_max = '100ms'\n");

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub generation { return one('SELECT COALESCE(max(generation), 0) FROM outbox.ring') }
sub stored { return one('SELECT count(*) FROM outbox.stored_event') }
sub held_back { return stat_sink($node)->{retention_held_back_by} // '' }

# waits until the events of now have been dropped: the load goes on meanwhile
sub turn {
    my ($what) = @_;
    my $newest = one('SELECT COALESCE(max(seq), 0) FROM outbox.stored_event');
    poll_until(sub { one("SELECT count(*) FROM outbox.stored_event WHERE seq <= $newest") == 0 }, $what);
    return;
}

# How many events have been dropped and are in no stream.
sub dropped_unpublished {
    my @dropped = split /\n/, one('SELECT event_id FROM truth EXCEPT SELECT event_id FROM outbox.stored_event');
    my $there = event_ids($redis);
    return scalar grep { !$there->{$_} } @dropped;
}

# while all is well: without rollbacks, which leave something behind in any table

my $load = start_load($node, clients => 3, rate => 150, weights => { commit => 5, multi => 2, async => 2, savepoint => 0, rollback => 0, prepared => 0 });
wait_for_streams($redis, 100);
turn('old events are dropped');
turn('and again');
my $storage = q{FROM pg_stat_user_tables WHERE schemaname = 'outbox' AND relname ~ '^(event|tick)_\d$'};
poll_until(sub { one("SELECT sum(n_tup_ins) > 100 $storage") eq 't' }, 'the statistics have been told');
is(one("SELECT sum(n_dead_tup) || ' ' || sum(n_tup_upd) || ' ' || sum(n_tup_del) $storage"), '0 0 0',
    'with no dead tuple, no update and no delete');
$load->stop;
$load = start_load($node, clients => 3, rate => 150);
ok(poll_until(sub { generation() >= 4 }, 'the ring turns'), 'the ring turns');
cmp_ok(stored(), '<', committed($node), 'old events are dropped');
# by the clock when all was read: a partition is empty for any snapshot once it was truncated
is(one(q{WITH dropped AS MATERIALIZED (SELECT event_id FROM truth t LEFT JOIN outbox.stored_event e USING (event_id) WHERE e.event_id IS NULL)
         SELECT count(*) FROM dropped WHERE ('x' || left(replace(event_id::text, '-', ''), 12))::bit(48)::bigint
                > extract(epoch FROM clock_timestamp()) * 1000 - 2000}), 0, 'young ones are kept');
is(one(q{SELECT count(*) FROM outbox.tick WHERE ms / 1000.0 < extract(epoch FROM now()) - 60}), 0, 'ticks are dropped too');
# but for a moment, as an autovacuum may
poll_until(sub { held_back() eq '' }, 'nothing holds them back');
poll_until(sub { log_has($node, qr/LOG:  events older than outbox\.retention were dropped/) }, 'the log says so');

# an open transaction that has emitted; autovacuum and the ring have to get along without it

# looked at before it begins: a ring of eight that is full stays where it is until it ends
my $writer = OutboxTest::Session->new($node);
my $generation = generation();
$writer->say('BEGIN; SELECT load.step(900);');
poll_until(sub { held_back() =~ /transaction/ }, 'an open transaction holds events back, and stat_sink names it');
poll_until(sub { generation() >= $generation + 3 }, 'emission goes on to new partitions all the same');
$writer->say('COMMIT;');
turn('they are dropped when it has ended');
poll_until(sub { held_back() eq '' }, 'nothing holds them back any more');

# one that has rolled back to a savepoint, and with it has lost its lock on the partition
$generation = generation();
$writer->say('BEGIN; SELECT load.step(901); SAVEPOINT s; SELECT load.step(902); ROLLBACK TO s; SELECT load.step(901);');
poll_until(sub { generation() >= $generation + 3 }, 'the ring turns once more');
$writer->say('SELECT load.step(901); COMMIT;');
# the lock is taken in the savepoint only
$writer->say('BEGIN; SELECT txid_current(); SAVEPOINT s; SELECT load.step(903); ROLLBACK TO s;');
$generation = generation();
poll_until(sub { generation() >= $generation + 1 }, 'the ring turns under it');
$writer->say('SELECT load.step(903); COMMIT;');
is(one("SELECT string_agg(version::text, ',' ORDER BY version) FROM truth WHERE aggregate_id IN ('a901', 'a903')"), '1,1,2,3',
    'the events of these transactions are committed');
turn('the partitions are dropped');

# one that was prepared
$generation = generation();
$writer->say("BEGIN; SELECT load.step(904); PREPARE TRANSACTION 'later';");
poll_until(sub { generation() >= $generation + 3 }, 'the ring turns');
poll_until(sub { held_back() =~ /transaction/ }, 'a prepared transaction holds events back');
$writer->say("COMMIT PREPARED 'later';");
turn('they are dropped when it has ended');
poll_until(sub { flush($node) }, 'everything is published');
my %there = map { map { $_->[1]{aggregate_id} => 1 } $redis->entries($_) } $redis->streams;
ok($there{a900} && $there{a901} && $there{a903} && $there{a904}, 'what late transactions had emitted is published');
ok(!$there{a902}, 'what was rolled back is not');

# One that commits when the ring has moved on, in one batch with an event of a later partition. As long as the later one is
# retained, so is the earlier one, or the place in the batch would be another.
# Once more if nobody had the time to look while they were there.
my ($entry, %places);
for my $aggregate (map { 1000 + 2 * $_ } 0 .. 9) {
    my ($early, $late) = ($aggregate, $aggregate + 1);
    $generation = generation();
    $writer->say("BEGIN; SELECT load.step($early);");
    poll_until(sub { generation() >= $generation + 4 }, 'the ring turns under it, again and again');
    pause_sink($node);
    $writer->say('COMMIT;');
    one("SELECT load.step($late)");
    one("SELECT outbox.resume('default')");
    %places = ();
    poll_until(
        sub {
            my $row = one("SELECT position, extract(epoch FROM clock_timestamp()) - split_part(position, '-', 1)::bigint / 1000.0 "
                . "FROM outbox.event WHERE aggregate_id = 'a$late'");
            my ($place, $age) = split /\|/, $row;
            $places{$place} = 1 if defined $age && $age < 1.9;
            return $row eq '';
        },
        'the later one has been dropped');
    ($entry) = grep { $_->[1]{aggregate_id} eq "a$late" } map { $redis->entries($_) } $redis->streams;
    last if %places;
}
is(join(' ', keys %places), $entry->[0], 'for as long as events are retained they are at their places');

# an old snapshot, as of a dump: nothing that it sees as unsent may go
$writer->say('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM truth;');
poll_until(sub { held_back() =~ /snapshot/ }, 'an old snapshot holds events back');
$writer->say('COMMIT;');
turn('and no longer than it lives');

# a pause

pause_sink($node);
poll_until(sub { one("SELECT now() - min(occurred_at) > '3500 ms' FROM outbox.event WHERE status <> 'published'") eq 't' },
    'unpublished events are older than retention');
is(dropped_unpublished(), 0, 'none of them has been dropped');
one("SELECT outbox.resume('default')");
turn('they are dropped after they were published');

# a stream that refuses its events

$redis->spoil('outbox:{wallet}');
poll_until(sub { stat_sink($node)->{held_streams} == 1 }, 'the stream is held');
poll_until(sub { held_back() =~ /held|confirmed/ }, 'a held stream holds its events back');
poll_until(sub { one("SELECT now() - min(occurred_at) > '3500 ms' FROM outbox.stored_event") eq 't' }, 'they are older than retention');
$redis->mend('outbox:{wallet}');
poll_until(sub { dropped_unpublished() == 0 }, 'none of them has been dropped', 10);
poll_until(sub { stat_sink($node)->{held_streams} == 0 }, 'the stream is in order again');
turn('they are dropped after they were published');

# Redis away for longer than retention

$redis->sigstop;
poll_until(sub { one("SELECT now() - min(occurred_at) > '3500 ms' FROM outbox.event WHERE status <> 'published'") eq 't' },
    'what waits is older than retention');
$redis->sigcont;
is(dropped_unpublished(), 0, 'none of it has been dropped');
turn('they are dropped after they were published');

$load->stop;
wait_settled($node);
ok_streams($node, $redis, 'nothing was dropped that was not in its stream before');
is(one(q{SELECT count(*) FROM truth WHERE event_id IN (SELECT event_id FROM outbox.stored_event)}) < committed($node) / 2 ? 'few' : 'many',
    'few', 'few events are still stored');
is(one("SELECT sum(n_tup_upd) || ' ' || sum(n_tup_del) $storage"), '0 0', 'no event and no tick was ever updated or deleted');
cmp_ok(one(q{SELECT sum(pg_total_relation_size(c.oid)) / 1000000 FROM pg_class c
              WHERE relnamespace = 'outbox'::regnamespace AND relname ~ '^event_\d$'}), '<', 20, 'and the ring stays small');

done_testing();
