# Several sinks: each has its own cursor and worker, so that one that is down holds nobody back but retention; and each gets
# every event once and in order, whatever is killed.
use strict;
use warnings;
use Test::More;

use OutboxTest;

my $first = OutboxTest::Redis->new(name => 'first', aof => 'always');
my $second = OutboxTest::Redis->new(name => 'second', aof => 'always');
my $third = OutboxTest::Redis->new(name => 'third', start => 0);
my $node = new_node(redis => $first, conf => <<'CONF');
outbox.retention = '2s'
max_worker_processes = 16
# that nothing is counted as an error because the machine was busy
outbox.connect_timeout = '60s'
outbox.response_timeout = '60s'
CONF

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub create { my ($name, $redis, $more) = @_; return one("SELECT outbox.create_sink('$name', '" . $redis->url . "'" . ($more // '') . ')') }
sub id_of { return one("SELECT id FROM outbox.sink WHERE name = '$_[0]'") }

create('second', $second);
create('down', $third);
my $second_id = id_of('second');
my $pid = wait_for_worker($node, 'postgres', $second_id);
isnt($pid, wait_for_worker($node), 'each sink has a worker of its own');
poll_until(sub { one("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox worker'") == 3 }, 'there are three');

# one of them is down for the whole time

my $load = start_load($node, clients => 3, rate => 150);
poll_until(sub { stat_sink($node, 'postgres', 'down')->{state} eq 'backing off' }, 'one sink has no Redis');
poll_until(sub { $_->published > 200 }, 'the others publish') for $first, $second;
is(stat_sink($node)->{errors}, 0, 'and know no error');
is(stat_sink($node, 'postgres', 'second')->{errors}, 0, 'neither of them');
poll_until(sub { (stat_sink($node)->{retention_held_back_by} // '') =~ /sink "down" has not confirmed/ },
    'retention waits for it, and stat_sink names it', 60);
is(one('SELECT count(*) FROM truth WHERE event_id NOT IN (SELECT event_id FROM outbox.stored_event)'), 0, 'nothing was dropped');

# crashes, with all of them at work

for my $sink_id (1, $second_id) {
    my $killed = kill_worker($node, 'postgres', 'KILL', $sink_id);
    poll_until(sub { my $now = worker_pid($node, 'postgres', $sink_id); $now && $now != $killed }, 'there is another worker');
}
my @before = ($first->published, $second->published);
poll_until(sub { $first->published > $before[0] && $second->published > $before[1] }, 'both publish again');
crash($node);
$node->start;
@before = ($first->published, $second->published);
poll_until(sub { $first->published > $before[0] && $second->published > $before[1] }, 'and after a crash of the server');
$node->stop('immediate');
$node->start;
$second->kill9;
poll_until(sub { stat_sink($node, 'postgres', 'second')->{state} eq 'backing off' }, 'a Redis is killed');
@before = $first->published;
poll_until(sub { $first->published > $before[0] }, 'the other one goes on');
$second->start;

# a sink is dropped while it works

create('doomed', $second, ", stream => 'doomed:{%t}'");
my $doomed_id = id_of('doomed');
poll_until(sub { (stat_sink($node, 'postgres', 'doomed')->{published} // 0) > 50 }, 'another sink works');
is(one("BEGIN; SELECT outbox.drop_sink('doomed'); SELECT count(*) FROM outbox.sink WHERE name = 'doomed'; ROLLBACK"), "\n0",
    'a sink is dropped in a transaction that is taken back');
my $published = sub { stat_sink($node, 'postgres', 'doomed')->{published} // 0 };
poll_until(sub { worker_pid($node, 'postgres', $doomed_id) && $published->() > 0 }, 'it goes on then');
my $uuid = one("SELECT uuid FROM outbox.sink WHERE name = 'doomed'");
my ($status, $out, $err) = $node->psql('postgres', "SELECT outbox.drop_sink('doomed')");
is($status, 0, 'it is dropped');
like($err, qr/NOTICE:  the streams of sink "doomed" stay in Redis as they are, and so does its key "outbox:sink:$uuid"/, 'and says what stays');
ok(poll_until(sub { one("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox worker'") == 3 }, 'there are three'), 'its worker is gone');
sub left_of {
    my ($id) = @_;
    my @tables = qw(tick incarnation checkpoint stream move placed dead_letter settled_letter replay_task sink_filter);
    return one('SELECT ' . join ' + ', map { "(SELECT count(*) FROM outbox.$_ WHERE sink_id = $id)" } @tables);
}
is(left_of($doomed_id), 0, 'with all that was known of it');

# the end

$load->stop;
wait_settled($node);
ok(flush($node, 'postgres', '30 s', 'second'), 'the second sink is flushed');
ok(!flush($node, 'postgres', '100 ms', 'down'), 'the one that is down cannot be');
is(one("SELECT outbox.flush('100 ms', null)"), 'f', 'nor all of them');
ok_streams($node, $first, 'the first sink has everything once and in order');
ok_streams($node, $second, 'so has the second');
is(one("SELECT count(*) FROM outbox.verify('$_')"), 0, "as verify says of $_") for 'default', 'second';
is(left_of($doomed_id), 0, 'and no trace of the dropped one has come back');

# it comes back: what nobody had taken from it

$third->start;
poll_until(sub { flush($node, 'postgres', '10 s', 'down') }, 'the sink that was down is flushed', 60);
ok_streams($node, $third, 'it has everything too, though it came late');
# what it had held back is dropped meanwhile
my $found;
poll_until(
    sub {
        ($status, $found, $err) = $node->psql('postgres', "SELECT count(*) FROM outbox.verify('down')");
        return $status == 0 || $err !~ /were dropped by retention while/;
    },
    'it is verified');
is($status == 0 ? $found : $err, 0, 'as verify says');
is(one("SELECT outbox.flush('30 s', null)"), 't', 'all sinks can be flushed');
my $newest = one('SELECT max(seq) FROM outbox.stored_event');
# a ring that is idle keeps its last batch
poll_until(sub { emit_some($node, 1); one("SELECT count(*) FROM outbox.stored_event WHERE seq <= $newest") == 0 },
    'and retention goes on', 90);
poll_until(sub { emit_some($node, 1); one('SELECT count(*) FROM outbox.stat_sink WHERE retention_held_back_by IS NOT NULL') == 0 },
    'as every sink says', 60);
pass('retention goes on');

done_testing();
