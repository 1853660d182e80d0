# The server may stop or crash at any moment, in the middle of a batch and under load: what was committed is published once,
# and nothing else is.
use strict;
use warnings;
use OutboxTest;
use OutboxTest::Positions;
use Test::More;
use Time::HiRes qw(sleep);

my $rounds = $ENV{ROUNDS} // 6;
my $redis = OutboxTest::Redis->new(aof => 'always');
my $node = new_node(redis => $redis, conf => "wal_writer_delay = '10s'\n");

sub sql { return $node->safe_psql('postgres', $_[0]) }

my $load = start_load($node, clients => 3, rate => 200, weights => { commit => 40, multi => 10, savepoint => 10, async => 40 });
my ($hit, $n, $backlog) = (0, 0, 4000);
while ($n < $rounds || ($hit < $rounds / 2 && $n < 4 * $rounds)) {
    $n++;
    sql('SELECT outbox.pause()');
    poll_until(sub { stat_sink($node)->{state} eq 'paused' }, 'the sink is paused');
    emit_some($node, $backlog);
    my $before = $redis->published;
    my $committed = committed($node);
    sql('SELECT outbox.resume()');
    poll_until(sub { $redis->published > $before }, 'the worker is at work');
    # in every third round Redis executes the last chunk when the server is gone
    $redis->sigstop if $n % 3 == 0;
    sleep rand 0.02;
    $n % 2 ? crash($node) : $node->stop('immediate');
    $redis->sigcont if $n % 3 == 0;
    my $left = $committed - $redis->published;
    note("round $n: $left of $backlog events were left");
    # a worker that was done before has more to do the next time
    if ($left > 0) { $hit++ }
    elsif ($backlog < 64000) { $backlog *= 2 }
    $node->start;
    wait_for_worker($node);
}
my $published = $redis->published;
poll_until(sub { $redis->published > $published + 100 }, 'events are published again');
$load->stop;
wait_settled($node);
cmp_ok($hit, '>=', $rounds / 2, 'the server has stopped in the middle of a batch');
ok_streams($node, $redis, 'a crashed server has lost and doubled nothing');

# also when it is alone
$node->stop('fast');
$node->start;
emit_some($node, 100);
ok(flush($node), 'a server that was stopped in order goes on');
ok_streams($node, $redis, 'where it was');

# The tick of what was sent last is not on the disk yet when the server crashes. The marker has it.

sub entry_ids { return { map { $_->[1]{event_id} => $_->[0] } map { $redis->entries($_) } $redis->streams } }

# Until the disk was late: another flush of the log may have come by.
sub crash_until {
    my ($what, $meddle, $seen) = @_;
    for my $round (1 .. 10) {
        my $published = $redis->published;
        emit_some($node, 1);
        poll_until(sub { $redis->published > $published }, "$what: an event is in its stream");
        crash($node);
        $meddle->();
        $node->start;
        emit_some($node, 1);
        poll_until(sub { flush($node) }, "$what: the worker goes on");
        last if $seen->();
    }
    ok($seen->(), $what);
    return;
}

sub marker {
    my ($key) = grep { !/:lease$/ } @{ $redis->cmd('KEYS', 'outbox:sink:*') };
    return $key;
}
sub placed { return sql('SELECT count(*) FROM outbox.placed') }

my $log_from = -s $node->logfile;
crash_until('a tick that a crash took is taken from the marker', sub { }, sub { log_has($node, qr/has its last batch from Redis' marker/, $log_from) });
is(placed(), 0, 'so no event has to be looked for');
ok_streams($node, $redis, 'and none is sent again');
ok_positions($node, $redis, 'outbox.event says where each is');
my $before = entry_ids();
$redis->cmd('FLUSHALL');
poll_until(sub { $redis->published == committed($node) }, 'what Redis loses after that is appended again');
is_deeply(entry_ids(), $before, 'with the same IDs');

# verify() before the worker has looked at Redis: the marker explains what the database does not know
my $seen = 0;
for my $round (1 .. 10) {
    my $published = $redis->published;
    emit_some($node, 1);
    poll_until(sub { $redis->published > $published }, 'an event is in its stream');
    crash($node);
    $node->append_conf('postgresql.conf', "outbox.enabled = off\n");
    $node->start;
    $seen = sql('SELECT count(*) FROM outbox.event WHERE position IS NULL') > 0;
    my $findings = sql('SELECT * FROM outbox.verify()');
    is($findings, '', 'an entry of a tick that only the marker has is not extra') if $seen || $findings ne '';
    $node->append_conf('postgresql.conf', "outbox.enabled = on\n");
    $node->reload;
    poll_until(sub { flush($node) }, 'the worker goes on');
    last if $seen;
}
ok($seen, 'a crash has taken a tick while the worker was away');

# without the marker the streams themselves are looked at
crash_until('without a marker the event is found in its stream', sub { $redis->cmd('DEL', marker()) }, sub { placed() > 0 });
ok_streams($node, $redis, 'and is not sent again');
ok_positions($node, $redis, 'outbox.event says where it is');
$redis->cmd('FLUSHALL');
poll_until(sub { $redis->published == committed($node) }, 'when Redis loses it after that, it is appended again');
ok(flush($node), 'the worker goes on');
ok_streams($node, $redis, 'once, in order');
ok_positions($node, $redis, 'outbox.event says where');
is(placed(), 0, 'in its batch');
is(sql('SELECT * FROM outbox.verify()'), '', 'and verify() agrees');

# a marker that carries a tick of a server that was further in the log than this one is
my $placed = placed();
crash_until(
    'a tick beyond the end of the log is not believed; the event is looked for',
    sub {
        my $text = $redis->cmd('GET', marker());
        $text =~ s/^((?:[^:]*:){4}(?:[^,]*,){4})(\d+)/$1 . ($2 + (1 << 30))/e or return;
        $redis->cmd('SET', marker(), $text);
    },
    sub { placed() > $placed });
ok_streams($node, $redis, 'and not sent again');
ok_positions($node, $redis, 'outbox.event says where it is');

done_testing();
