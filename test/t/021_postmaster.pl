# The server may stop or crash at any moment, in the middle of a batch and under load: what was committed is published once,
# and nothing else is.
use strict;
use warnings;
use OutboxTest;
use Test::More;
use Time::HiRes qw(sleep);

my $rounds = $ENV{ROUNDS} // 6;
my $redis = OutboxTest::Redis->new(aof => 'always');
my $node = new_node(redis => $redis, conf => "wal_writer_delay = '10s'\n");

sub sql { return $node->safe_psql('postgres', $_[0]) }

my $load = start_load($node, clients => 3, rate => 200, weights => { commit => 40, multi => 10, savepoint => 10, async => 40 });
my $hit = 0;
for my $n (1 .. $rounds) {
    sql('SELECT outbox.pause()');
    poll_until(sub { stat_sink($node)->{state} eq 'paused' }, 'the sink is paused');
    emit_some($node, 4000);
    my $before = $redis->published;
    my $committed = committed($node);
    sql('SELECT outbox.resume()');
    poll_until(sub { $redis->published > $before }, 'the worker is at work');
    # in every third round Redis executes the last chunk when the server is gone
    $redis->sigstop if $n % 3 == 0;
    sleep rand 0.02;
    $n % 2 ? crash($node) : $node->stop('immediate');
    $redis->sigcont if $n % 3 == 0;
    $hit++ if $redis->published < $committed;
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

done_testing();
