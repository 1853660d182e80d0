# A worker may be killed or ended at any moment: another one takes over where it was, without a word from anybody.
use strict;
use warnings;
use OutboxTest;
use Test::More;
use Time::HiRes qw(sleep time);

my $rounds = $ENV{ROUNDS} // 4;
my $redis = OutboxTest::Redis->new(aof => 'always');
# What ends at once does not wait for any of these times.
my $node = new_node(redis => $redis, conf => "outbox.connect_timeout = '60s'\noutbox.response_timeout = '60s'\n");
# what a crash leaves prepared holds its locks until somebody ends it; that is not what this test is about
my %weights = (commit => 60, multi => 15, savepoint => 10, async => 15);

sub sql { return $node->safe_psql('postgres', $_[0]) }

sub is_gone {
    my ($pid) = @_;
    open my $file, '<', "/proc/$pid/stat" or return 1;
    return (readline($file) // '') !~ /\) [^ZX] /;
}

# until the worker is one that has published something: a new one, where there was another
sub wait_for_successor {
    my ($pid) = @_;
    return poll_until(
        sub {
            my $now = worker_pid($node);
            return $now && (!$pid || $now != $pid) && $now;
        },
        'there is another worker');
}

sub in_time {
    my ($limit, $sub) = @_;
    my $began = time;
    my $done = poll_until($sub, 'it is done') && time - $began;
    return $done <= $limit ? 1 : (diag("took $done s"), 0)[1];
}

# In the middle of a batch: the backlog of a pause is many batches, and each is many chunks. In every second round Redis
# stands still then, with a chunk in flight of which nobody knows what becomes. A worker that was done before it was met has more
# to do the next time.
my $backlog = 4000;

sub round {
    my ($signal, $n) = @_;
    sql('SELECT outbox.pause()');
    poll_until(sub { stat_sink($node)->{state} eq 'paused' }, 'the sink is paused');
    emit_some($node, $backlog);
    my $before = $redis->published;
    my $committed = committed($node);
    my $pid = wait_for_worker($node);
    sql('SELECT outbox.resume()');
    poll_until(sub { $redis->published > $before }, 'the worker is at work');
    $redis->sigstop if $n % 2;
    sleep rand 0.02;
    kill_worker($node, 'postgres', $signal, undef, $pid);
    poll_until(sub { is_gone($pid) }, 'the worker is gone', 30);
    $redis->sigcont if $n % 2;
    my $left = $redis->published < $committed;
    note("round $n, SIG$signal: " . ($committed - $redis->published) . " of $backlog events were left") if $left;
    $backlog *= 2 if !$left && $backlog < 64000;
    wait_for_successor($pid);
    return $left;
}

for my $signal (qw(KILL TERM)) {
    my $load = start_load($node, clients => 2, rate => 150, weights => \%weights);
    my ($hit, $n) = (0, 0);
    while ($n < $rounds || ($hit < $rounds / 2 && $n < 4 * $rounds)) { $hit += round($signal, ++$n) }
    my $published = $redis->published;
    poll_until(sub { $redis->published > $published }, 'new events are published');
    $load->stop;
    wait_settled($node);
    cmp_ok($hit, '>=', $rounds / 2, "SIG$signal has met workers in the middle of their work");
    ok_streams($node, $redis, "after SIG$signal nothing is lost or doubled");
}

# SIGTERM is not a crash

# (the launcher takes a worker that ends again and again for one that cannot work, and waits: it is to forget the rounds)
$node->restart;
my $offset = -s $node->logfile;
my $pid = wait_for_worker($node);
my $started = sql('SELECT pg_postmaster_start_time()');
sql("SELECT pg_terminate_backend($pid)");
ok(in_time(20, sub { is_gone($pid) }), 'a worker that waits for events ends at once');
ok(in_time(10, sub { (worker_pid($node) // $pid) != $pid }), 'and another one is there in no time');
emit_some($node, 10);
ok(flush($node), 'which does its work');
is(sql('SELECT pg_postmaster_start_time()'), $started, 'and the server did not restart');
ok(!log_has($node, qr/terminating any other active server processes/, $offset), 'nor did its sessions end');

# however Redis behaves

sub ends_at_once {
    my ($what, $begin, $end) = @_;
    $begin->();
    my $pid = kill_worker($node, 'postgres', 'TERM');
    ok(in_time(20, sub { is_gone($pid) }), "SIGTERM ends a worker at once $what");
    $end->();
    wait_for_successor($pid);
    ok(flush($node), 'and the next one goes on');
}

sub retry_after {
    my ($time) = @_;
    sql("ALTER SYSTEM SET outbox.$_ = '$time'") for qw(retry_max retry_min);
    $node->reload;
    return;
}

ends_at_once(
    'that waits for an answer',
    sub {
        stop_redis_in_batch($node, $redis, sub { emit_some($node, 3000) });
    },
    sub { $redis->sigcont });
ends_at_once(
    'that connects to a Redis which hangs',
    sub {
        $redis->sigstop;
        my $pid = wait_for_worker($node);
        kill_worker($node, 'postgres', 'TERM');
        wait_for_successor($pid);
        emit_some($node, 1);
        poll_until(sub { stat_sink($node)->{state} eq 'connecting' }, 'the worker connects');
    },
    sub { $redis->sigcont });
ends_at_once(
    'that backs off',
    sub {
        retry_after('60s');
        $redis->kill9;
        emit_some($node, 1);
        poll_until(sub { stat_sink($node)->{state} eq 'backing off' }, 'the worker backs off');
    },
    sub {
        retry_after('50ms');
        $redis->start;
        # the next one may have looked before that, with the old setting
        wait_for_successor(kill_worker($node, 'postgres', 'TERM'));
    });

# pg_cancel_backend

$pid = wait_for_worker($node);
emit_some($node, 1);
ok(flush($node), 'the worker works');
$offset = -s $node->logfile;
is(sql("SELECT pg_cancel_backend($pid) FROM generate_series(1, 3)"), "t\nt\nt", 'the signal is sent');
$redis->sigstop;
emit_some($node, 1000);
is(sql("SELECT pg_cancel_backend($pid)"), 't', 'also in the middle of a batch');
$redis->sigcont;
emit_some($node, 10);
ok(flush($node), 'a cancelled worker goes on');
is(worker_pid($node), $pid, 'and is the same');
ok(!log_has($node, qr/\[$pid\] .*cancel/, $offset), 'nothing was cancelled');
ok_streams($node, $redis, 'nothing is lost or doubled in the end');

done_testing();
