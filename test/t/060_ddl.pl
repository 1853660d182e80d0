# Commands on databases, the extension and its tables while the worker is at work. None waits for it, none fails because of
# it, and what was committed is in the streams afterwards.
use strict;
use warnings;
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;
use OutboxTest::Positions;

my $limit = 20;    # seconds that a command may take

my $redis = OutboxTest::Redis->new;
# what would wait for the worker would wait as long as it waits for Redis
my $node = new_node(redis => $redis, conf => "outbox.connect_timeout = '60s'\noutbox.response_timeout = '60s'\n");

# The command has to end in time; its output.
sub quickly {
    my ($db, $sql, $name) = @_;
    my $began = time;
    my ($status, $out, $err) = $node->psql($db, $sql, timeout => 50);
    my $took = time - $began;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    ok(defined $status && $status == 0 && $took < $limit, $name)
        or diag(sprintf '%.1f s, %s: %s', $took, $status // 'timed out', $err // '');
    return $out;
}

sub workers_of {
    return $node->safe_psql('postgres',
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '$_[0]' AND backend_type = 'outbox worker'");
}

sub new_database {
    my ($db) = @_;
    $node->safe_psql('postgres', "CREATE DATABASE $db");
    prepare_database($node, $db);
    wait_for_worker($node, $db);
    return;
}

# so much to do that the worker is in the middle of it when the next command comes
sub busy {
    my ($db, $events) = @_;
    my $before = published_of_app();
    emit_some($node, $events // 4000, $db);
    poll_until(sub { published_of_app() > $before }, 'the worker is at work');
    return;
}

# the other database goes on all the time
sub published_of_app {
    my $published = 0;
    $published += $_ for $redis->cmds(map { [ 'XLEN', $_ ] } grep { /\{app_/ } $redis->streams);
    return $published;
}

# its own topics, so that two databases may share a Redis
sub own_topics {
    my ($db, $prefix) = @_;
    my ($step) = OutboxTest::load_sql() =~ /(CREATE FUNCTION load\.step.*)/s;
    $step =~ s/CREATE FUNCTION/CREATE OR REPLACE FUNCTION/;
    $step =~ s/'(billing|identity|wallet|shop)\./'${prefix}_$1./g;
    $step =~ s/'audit'/'${prefix}_audit'/;
    $node->safe_psql($db, $step);
    return;
}

# two databases on one Redis, one of them under load all the time

new_database('app');
own_topics('app', 'app');
my $other = start_load($node, clients => 2, rate => 100);
my $of_app = sub { $_[0] =~ /\{app_/ };
my $not_of_app = sub { $_[0] !~ /\{app_/ };
run_load($node, db => 'app', clients => 2, transactions => 100);
wait_settled_there('app');
ok_streams($node, $redis, 'the second database is complete', db => 'app', ignore => $not_of_app);
isnt($node->safe_psql('app', 'SELECT uuid FROM outbox.sink'), $node->safe_psql('postgres', 'SELECT uuid FROM outbox.sink'),
    'its sink has an identity of its own');

sub wait_settled_there {
    my ($db) = @_;
    poll_until(sub { flush($node, $db) }, "everything of $db is published");
    return;
}

# an unprivileged user

$node->safe_psql('postgres', 'CREATE ROLE guest LOGIN CREATEDB');
my $pid = wait_for_worker($node, 'app');
for my $command ('DROP DATABASE app', 'ALTER DATABASE app RENAME TO mine', 'CREATE DATABASE mine TEMPLATE app',
    'ALTER DATABASE app SET TABLESPACE pg_default') {
    my ($status, undef, $err) = $node->psql('postgres', "SET ROLE guest; $command");
    isnt($status, 0, "a user without the right: $command");
    like($err, qr/owner|permission denied/, 'is told so');
}
is(wait_for_worker($node, 'app'), $pid, 'and the worker was not stopped');

# ALTER DATABASE RENAME, CREATE DATABASE TEMPLATE, SET TABLESPACE

busy('app');
quickly('postgres', 'ALTER DATABASE app RENAME TO app2', 'ALTER DATABASE RENAME with a busy worker');
wait_for_worker($node, 'app2');
wait_settled_there('app2');
ok_streams($node, $redis, 'nothing is lost or doubled by it', db => 'app2', ignore => $not_of_app);

busy('app2');
quickly('postgres', 'CREATE DATABASE copy TEMPLATE app2', 'CREATE DATABASE TEMPLATE with a busy worker');
wait_for_worker($node, 'app2');
wait_settled_there('app2');
ok_streams($node, $redis, 'the original goes on', db => 'app2', ignore => $not_of_app);
poll_until(sub { stat_sink($node, 'copy')->{pid} }, 'the copy has a worker');
poll_until(sub { stat_sink($node, 'copy')->{state} eq 'paused (restored)' }, 'the copy is paused');
my $published = $redis->published;
$other->stop;
wait_settled($node);
$published = $redis->published;
emit_some($node, 20, 'copy');
is(flush($node, 'copy', '1 s'), '', 'what is emitted in the copy waits');
is($redis->published, $published, 'and is not sent');

busy('app2');
my $place = PostgreSQL::Test::Utils::tempdir();
$node->safe_psql('postgres', "CREATE TABLESPACE place LOCATION '$place'");
quickly('postgres', 'ALTER DATABASE app2 SET TABLESPACE place', 'ALTER DATABASE SET TABLESPACE with a busy worker');
wait_settled_there('app2');
ok_streams($node, $redis, 'nothing is lost or doubled by it', db => 'app2', ignore => $not_of_app);

# the same while Redis hangs: the worker waits for an answer that does not come

$redis->sigstop;
emit_some($node, 200, 'app2');
poll_until(sub { stat_sink($node, 'app2')->{lag_events} > 0 }, 'there is something to send');
quickly('postgres', 'ALTER DATABASE app2 RENAME TO app', 'ALTER DATABASE RENAME with a hung Redis');
quickly('postgres', 'DROP DATABASE copy', 'DROP DATABASE with a hung Redis');
is(workers_of('copy'), 0, 'the worker of the dropped database is gone');
$redis->sigcont;
wait_settled_there('app');
ok_streams($node, $redis, 'nothing is lost or doubled by it', db => 'app', ignore => $not_of_app);

# rewrites of the tables in the middle of a batch

my $before = $redis->published;
$redis->sigstop;
$node->safe_psql('app', 'SELECT load.step((i - 1) % 20 + 1, 20) FROM generate_series(1, 600) i');
for my $command ('VACUUM FULL outbox.event_0', 'CLUSTER outbox.event_0 USING event_0_xid_seq', 'REINDEX TABLE outbox.event_0',
    'VACUUM FULL outbox.tick_0', 'REINDEX TABLE CONCURRENTLY outbox.event_0', 'ALTER TABLE outbox.event_0 SET TABLESPACE pg_default',
    'REINDEX TABLE outbox.tick_0', 'VACUUM (FREEZE) outbox.event_0') {
    $redis->sigcont;
    my $now = $redis->published;
    poll_until(sub { $redis->published > $now }, 'the batch goes on') if $now < $before + 12000;
    $redis->sigstop;
    quickly('app', $command, "$command in the middle of a batch");
}
$redis->sigcont;
wait_settled_there('app');
ok_streams($node, $redis, 'the batch is complete and in order', db => 'app', ignore => $not_of_app);
my $load = start_load($node, db => 'app', clients => 2, rate => 200);
for my $command ('VACUUM FULL outbox.event_0', 'REINDEX TABLE outbox.event_0', 'VACUUM FULL outbox.tick_0',
    'REINDEX TABLE CONCURRENTLY outbox.event_0', 'REINDEX TABLE CONCURRENTLY outbox.tick_0') {
    quickly('app', $command, "$command under load");
}
$load->stop;
wait_settled($node, 'app');
ok_streams($node, $redis, 'and nothing is lost or doubled', db => 'app', ignore => $not_of_app);

# settings of the database that are not meant for the worker

{
    local $ENV{PGOPTIONS} = "-c default_transaction_isolation=read\\ committed -c default_transaction_read_only=off "
        . '-c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c lock_timeout=0 -c search_path=public';
    for my $setting ('synchronous_commit = off', "default_transaction_isolation = 'repeatable read'",
        'default_transaction_read_only = on', "statement_timeout = '1ms'", "idle_in_transaction_session_timeout = '1ms'",
        "lock_timeout = '1ms'", "search_path = 'nowhere'", 'default_transaction_deferrable = on', 'jit_above_cost = 0',
        'enable_indexscan = off', "session_replication_role = 'replica'") {
        $node->safe_psql('postgres', "ALTER DATABASE app SET $setting");
    }
    my $pid = kill_worker($node, 'app', 'TERM');
    # the log has the end of this one before we look
    poll_until(sub { (worker_pid($node, 'app') // $pid) != $pid }, 'there is another worker');
    $node->append_conf('postgresql.conf', "wal_writer_delay = '10s'\n");
    $node->reload;
    my $from = -s $node->logfile;
    $load = start_load($node, db => 'app', clients => 2, rate => 300);
    $published = $redis->published;
    poll_until(sub { $redis->published > $published + 300 }, 'the worker works with these settings');
    crash($node);
    $load->stop;
    $node->start;
    # a client that the crash met between its two phases has left rows locked
    end_prepared($node, 'app', 'load-');
    run_load($node, db => 'app', clients => 2, transactions => 20);
    wait_settled($node, 'app');
    ok_streams($node, $redis, 'settings of the database do not reach the worker, not even with a crash', db => 'app',
        ignore => $not_of_app);
    ok(!log_has($node, qr/outbox worker.*exited with exit code|canceling statement/, $from), 'no worker was cancelled by them');
    $node->safe_psql('postgres', 'ALTER DATABASE app RESET ALL');
}

# DROP EXTENSION under load, and again CREATE EXTENSION

$load = start_load($node, db => 'app', clients => 3, restart => 0);
$published = $redis->published;
poll_until(sub { $redis->published > $published + 300 }, 'the worker is at work');
quickly('app', 'DROP EXTENSION outbox', 'DROP EXTENSION under load');
$load->wait;
poll_until(sub { !workers_of('app') }, 'the worker is gone');
my %before = map { $_ => 1 } keys %{ event_ids($redis) };
$node->safe_psql('app', 'DROP TABLE truth; DROP SCHEMA load CASCADE');
prepare_database($node, 'app');
own_topics('app', 'app');
run_load($node, db => 'app', clients => 2, transactions => 50);
wait_settled_there('app');
ok_streams($node, $redis, 'CREATE EXTENSION again starts anew, behind what is there', db => 'app',
    ignore => sub { $_[0] !~ /\{app_/ || $before{ $_[2]{event_id} } });

# DROP DATABASE

$other = start_load($node, clients => 2, rate => 100);
busy('app', 8000);
quickly('postgres', 'DROP DATABASE app', 'DROP DATABASE with a busy worker');
is(workers_of('app'), 0, 'its worker is gone');
$other->stop;
wait_settled($node);
ok_streams($node, $redis, 'the other database was not affected by any of this', ignore => $of_app);
ok(!log_has($node, qr/deadlock detected|PANIC|TRAP|terminated by signal (6|11)/), 'no deadlock and no crash all the time');

done_testing();
