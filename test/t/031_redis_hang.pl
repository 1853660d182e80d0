# Redis hangs: it takes connections and answers nothing. That is nobody's problem but the worker's, and the worker's only
# until somebody wants something of it.
use strict;
use warnings;
use OutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $password = 'xyzzy-plugh-4711';
my $redis = OutboxTest::Redis->new(aof => 'always', conf => ["requirepass $password"], auth => [$password]);
# What would wait for the worker would wait as long as it waits for Redis.
my $node = new_node(url => "redis://:$password\@127.0.0.1:" . $redis->port . '/0', conf => <<'CONF');
outbox.batch_size = 500
outbox.connect_timeout = '60s'
outbox.response_timeout = '60s'
log_statement = all
log_min_duration_statement = 0
CONF

sub sql { return $node->safe_psql('postgres', $_[0]) }

sub is_gone {
    my ($pid) = @_;
    open my $file, '<', "/proc/$pid/stat" or return 1;
    return (readline($file) // '') !~ /\) [^ZX] /;
}

sub took {
    my ($sub) = @_;
    my $began = time;
    $sub->();
    return time - $began;
}

sub wait_for_new_worker {
    my ($pid) = @_;
    return poll_until(sub { my $now = worker_pid($node); $now && $now != $pid && $now }, 'there is another worker');
}

# what 300 transactions cost, each with its own commit
sub emit_alone {
    return took(sub {
        sql(<<'SQL');
DO $$
BEGIN
    FOR i IN 1..300 LOOP
        PERFORM load.step((i - 1) % 20 + 1);
        COMMIT;
    END LOOP;
END
$$
SQL
    });
}

emit_some($node, 100);
ok(flush($node), 'events are published');
$node->safe_psql('postgres', "CREATE DATABASE $_") for qw(other third);
prepare_database($node, 'other');
emit_some($node, 10, 'other');
ok(flush($node, 'other'), 'also those of another database, in the same streams');
my %other = map { $_ => 1 } split /\n/, $node->safe_psql('other', 'SELECT event_id FROM truth');
my $with = emit_alone();
my $at_once = 20;    # seconds, on a machine that stands still now and then

my $offset = -s $node->logfile;
$redis->sigstop;
my $worker = wait_for_worker($node);
emit_some($node, 10);
my @without = sort { $a <=> $b } map { emit_alone() } 1 .. 3;
note sprintf '300 commits: %.2f s with Redis, %.2f s to %.2f s without', $with, @without[ 0, -1 ];
cmp_ok($without[0], '<', 3 * $with + 1, 'emit and commit are as fast as ever');
cmp_ok($without[-1], '<', $at_once, 'and none of them waits');
cmp_ok(took(sub { $node->safe_psql('postgres', 'DROP DATABASE third') }), '<', $at_once, 'a database without outbox can be dropped at once');
cmp_ok(took(sub { $node->safe_psql('postgres', 'DROP DATABASE other') }), '<', $at_once, 'and so can one with a worker that waits');
cmp_ok(took(sub { sql('CREATE TABLE anything (i int); VACUUM anything; DROP TABLE anything') }), '<', $at_once, 'as can tables');
is(sql("SELECT pg_terminate_backend($worker, ${at_once}000)"), 't', 'the worker ends at once');
ok(is_gone($worker), 'and is gone');
$worker = wait_for_new_worker($worker);
# a new one waits for its connection, not for a chunk
emit_some($node, 10);
poll_until(sub { stat_sink($node)->{state} eq 'connecting' }, 'it connects');
cmp_ok(took(sub { kill_worker($node, 'postgres', 'TERM', undef, $worker); poll_until(sub { is_gone($worker) }, 'it ends') }),
    '<=', $at_once, 'a worker that connects does too');

# a big backlog, in many batches
my $load = start_load($node, clients => 2, rate => 300, weights => { commit => 60, multi => 10, savepoint => 10, rollback => 10, async => 10 });
my $committed = committed($node);
$worker = wait_for_new_worker($worker);
poll_until(sub { committed($node) > $committed + 500 && stat_sink($node)->{lag_events} > 1000 }, 'there is a backlog');
$load->stop;
my $state = stat_sink($node);
is($state->{pid}, $worker, 'the worker is there');
cmp_ok($state->{lag_seconds}, '>', 0, 'and the lag is shown');
is($redis->pid && kill(0, $redis->pid), 1, 'Redis still stands');

# fast shutdown
my $stopped = took(sub { $node->stop('fast') });
cmp_ok($stopped, '<', 30, 'the server stops at once');    # with a checkpoint
$node->append_conf('postgresql.conf', "outbox.$_ = '1s'\n") for qw(connect_timeout response_timeout);
my $began = time;
$node->start;
$worker = wait_for_worker($node);
emit_some($node, 20);

# a worker that backs off and tries again, more than ten times
poll_until(sub { stat_sink($node)->{errors} >= 3 }, 'the sink was tried again and again');
my @lines = slurp_file($node->logfile, $offset) =~ /^.*WARNING:.*Redis.*$/mg;
note $_ for @lines;
my %lines_of;
$lines_of{$_}++ for map { /\[(\d+)\] WARNING/ } @lines;
sub once_a_minute { my ($lines, $since) = @_; return $lines >= 1 && $lines <= 1 + int((time - $since) / 60) }
ok(once_a_minute(delete $lines_of{$worker} // 0, $began), 'the log says what is wrong, once a minute');
is(scalar(grep { $_ > 1 } values %lines_of), 0, 'as did the workers before it');

$redis->sigcont;
ok(flush($node, 'postgres', '60 s'), 'the backlog drains when Redis is back');
wait_settled($node);
ok_streams($node, $redis, 'completely and in order',
    ignore => sub { my ($key, $id, $fields) = @_; return $other{ $fields->{event_id} } });
is(worker_pid($node), $worker, 'by the worker that waited for it');

# the password is nowhere
unlike(slurp_file($node->logfile), qr/\Q$password\E/, 'the password is not in the log');
my $shown = sql("SELECT * FROM outbox.stat_sink") . sql('SELECT * FROM outbox.sink') . sql('SELECT * FROM pg_stat_activity')
    . sql('SHOW outbox.redis_url') . slurp_file("/proc/$worker/cmdline");
unlike($shown, qr/\Q$password\E/, 'nor in a view or a process title');
like($shown, qr/127\.0\.0\.1/, 'which show the address');

# also when it is wrong
$offset = -s $node->logfile;
$began = time;
sql("ALTER SYSTEM SET outbox.redis_url = 'redis://somebody:$password-2\@127.0.0.1:" . $redis->port . "/0'");
sql('SELECT pg_reload_conf()');
emit_some($node, 10);
poll_until(sub { log_has($node, qr/WRONGPASS/, $offset) }, 'the refused password is in the log');
poll_until(sub { stat_sink($node)->{errors} >= 10 }, 'the sink was tried again and again');
@lines = slurp_file($node->logfile, $offset) =~ /^.*WARNING:.*WRONGPASS.*$/mg;
ok(once_a_minute(scalar @lines, $began), 'a password that is refused is one line a minute');
unlike(slurp_file($node->logfile, $offset) . join('|', values %{ stat_sink($node) }), qr/\Q$password\E/, 'and is not shown');
sql('ALTER SYSTEM RESET outbox.redis_url');
sql('SELECT pg_reload_conf()');
ok(flush($node), 'with the right one it goes on');

done_testing();
