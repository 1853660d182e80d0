# What an operator may have set too low, forgotten, or changes while the server runs: emit works all the time, what is wrong
# is said with a hint, and what was emitted is published when it is right. And the password of Redis is nowhere to be seen.
use strict;
use warnings;
use Test::More;

use OutboxTest;

my $redis = OutboxTest::Redis->new;

sub set {
    my ($node, $name, $value) = @_;
    $node->safe_psql('postgres', "ALTER SYSTEM SET $name = '$value'");
    $node->reload;
    return;
}

# One event; what psql says besides.
sub emit_and_listen {
    my ($node, $db) = @_;
    my ($status, undef, $err) = $node->psql($db, 'SELECT load.step(1)');
    is($status, 0, "emit works in $db");
    return $err;
}

# the library is not preloaded

my $node = new_node(name => 'unloaded', redis => $redis, preload => 0);
like(emit_and_listen($node, 'postgres'), qr/WARNING: .*\n.*HINT: .*shared_preload_libraries/s, 'a warning tells what to preload');
run_load($node, clients => 2, transactions => 20);
is($redis->published, 0, 'nothing is published without a worker');
is(stat_sink($node)->{state}, 'no worker', 'stat_sink says so');
cmp_ok(stat_sink($node)->{lag_events}, '>', 20, 'and what waits');
my (undef, undef, $err) = $node->psql('postgres', 'SELECT outbox.flush()');
like($err, qr/ERROR: .*not preloaded\n.*HINT: .*shared_preload_libraries/s, 'flush() does not wait for what cannot come');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'outbox'\noutbox.redis_url = '" . $redis->url . "'\n");
$node->restart;
poll_until(sub { flush($node) }, 'everything is published');
ok_streams($node, $redis, 'after a restart with the library everything is published');
is(emit_and_listen($node, 'postgres'), '', 'and nobody is warned any more');
$node->stop;

# no background worker is left

# the launcher, the worker of postgres and one for scouts
$redis->restart;
$node = new_node(name => 'crowded', redis => $redis,
    conf => "max_worker_processes = 3\nmax_logical_replication_workers = 0\nmax_parallel_workers = 0\noutbox.max_workers = 8\n");
wait_for_worker($node);
for my $db ('first', 'second') {
    $node->safe_psql('postgres', "CREATE DATABASE $db");
    prepare_database($node, $db);
    wait_for_worker($node, $db) if $db eq 'first';
}
poll_until(
    sub { log_has($node, qr/WARNING:  could not start the outbox \w+ for database \d+: no background worker is free\n.*HINT:  .*max_worker_processes/) },
    'the log says that no background worker is free');
# the line may be of an earlier time, when one was soon free again
poll_until(sub { ($node->psql('second', 'SELECT load.step(1)'))[2] =~ /WARNING/ }, 'there is none for the second database');
my $warning = emit_and_listen($node, 'second');
like($warning, qr/WARNING: .*\n.*HINT: .*max_worker_processes/s, 'so does emit');
is(emit_and_listen($node, 'first'), '', 'but not where there is a worker');
run_load($node, db => 'second', clients => 2, transactions => 20);
is(stat_sink($node, 'second')->{state}, 'no worker', 'and stat_sink');
my %of_first = map { $_ => 1 } split /\n/, $node->safe_psql('first', 'SELECT event_id FROM truth');
$node->safe_psql('postgres', 'DROP DATABASE first');
poll_until(sub { wait_for_worker($node, 'second') }, 'there is a worker as soon as one is free');
poll_until(sub { flush($node, 'second') }, 'everything is published');
ok_streams($node, $redis, 'and what was emitted meanwhile is complete', db => 'second', ignore => sub { $of_first{ $_[2]{event_id} } });
$node->stop;

# no slot is left

$redis->restart;
$node = new_node(name => 'slots', redis => $redis, conf => "outbox.max_workers = 1\n");
wait_for_worker($node);
$node->safe_psql('postgres', 'CREATE DATABASE more');
prepare_database($node, 'more');
poll_until(sub { log_has($node, qr/WARNING:  could not start an outbox worker .*outbox\.max_workers \(1\) are in use\n.*HINT:  .*outbox\.max_workers/) },
    'the log says that all slots are in use');
like(emit_and_listen($node, 'more'), qr/WARNING: .*\n.*HINT: .*outbox\.max_workers/s, 'so does emit');
run_load($node, db => 'more', clients => 2, transactions => 20);
$node->safe_psql('postgres', 'DROP EXTENSION outbox');
poll_until(sub { wait_for_worker($node, 'more') }, 'there is a worker when the other one is not needed any more');
poll_until(sub { flush($node, 'more') }, 'everything is published');
ok_streams($node, $redis, 'and what was emitted meanwhile is complete', db => 'more');
$node->stop;

# another configuration while it runs

$redis->restart;
my $second = OutboxTest::Redis->new;
$node = new_node(name => 'main', redis => $redis, conf => "log_min_messages = debug1\nlog_statement = all\n");
my $load = start_load($node, clients => 2, rate => 200);
wait_for_streams($redis, 200);
set($node, 'outbox.enabled', 'off');
poll_until(sub { stat_sink($node)->{state} eq 'disabled' }, 'the sink is disabled');
poll_until(sub { $redis->cmd('CLIENT', 'LIST') !~ / name=outbox:/ }, 'Redis has read what the worker had sent');
my $published = $redis->published;
my $committed = committed($node);
poll_until(sub { committed($node) > $committed + 100 }, 'emit goes on');
is($redis->published, $published, 'nothing is sent while outbox.enabled is off');
set($node, 'outbox.enabled', 'on');
wait_for_streams($redis, $published + 100);
pass('and it goes on when it is on again');

set($node, 'outbox.redis_url', $second->url);
wait_for_streams($second, 100);
$load->stop;
wait_settled($node);
ok_streams($node, $second, 'another Redis gets everything that is retained');
$published = $redis->published;
run_load($node, clients => 2, transactions => 20);
wait_settled($node);
is($redis->published, $published, 'and the old one nothing more');
ok_streams($node, $second, 'the new one has it all');

# passwords

my $secret = 'Tr0ub4dor-and-3';
my $guarded = OutboxTest::Redis->new(auth => [ 'outbox', $secret ], start => 0);
$guarded->{conf} = [ "user outbox on >$secret ~* +\@all", 'user default off' ];
$guarded->start;
my $from = -s $node->logfile;
my $address = '127.0.0.1:' . $guarded->port;
$node->safe_psql('postgres', "ALTER SYSTEM SET outbox.redis_url = 'redis://outbox:$secret\@$address/0'");
$node->reload;
run_load($node, clients => 2, transactions => 20);
wait_for_streams($guarded, 1);
wait_settled($node);
ok_streams($node, $guarded, 'a password in the URL is used');
$node->safe_psql('postgres', 'CREATE ROLE monitor LOGIN; GRANT pg_monitor, outbox_reader TO monitor');
my @views = (
    'SHOW outbox.redis_url', "SELECT current_setting('outbox.redis_url')", "SELECT s FROM pg_settings s WHERE name LIKE 'outbox.%'",
    'SELECT s FROM outbox.sink s', 'SELECT s FROM outbox.stat_sink s', 'SELECT a FROM pg_stat_activity a',
    'SELECT s FROM pg_show_all_settings() s', 'SELECT s FROM outbox.worker_state() s',
);
my $seen = '';
for my $role ('postgres', 'monitor') {
    for my $view (@views) {
        my (undef, $out, $err) = $node->psql('postgres', "SET ROLE $role; $view");
        $seen .= "$role: $view\n$out\n$err\n";
    }
}
like($seen, qr/\Q$address\E/, 'the views show where Redis is');
unlike($seen, qr/\Q$secret\E/, 'but no password');
$seen = join "\n", map { (eval { OutboxTest::slurp_file($_) } // '') =~ tr/\0/ /r } glob '/proc/[0-9]*/cmdline';    # some end meanwhile
like($seen, qr/outbox/, 'process titles are seen');
unlike($seen, qr/\Q$secret\E/, 'and no password in them');

# wrong ones are refused in the log, and not quoted there
for my $url ("redis://outbox:$secret\@$address/0/nonsense", "http://outbox:$secret\@$address",
    "rediss://outbox:$secret\@$address/0?sslmode=disable", "redis://:$secret\@:99999999/0") {
    my ($status, undef, $err) = $node->psql('postgres', "ALTER SYSTEM SET outbox.redis_url = '$url'");
    isnt($status, 0, 'a URL that is none is refused');
    unlike($err =~ s/^.*STATEMENT.*$//mr, qr/ERROR.*\Q$secret\E/, 'the error does not quote it');
}
$node->append_conf('postgresql.conf', "log_parameter_max_length = -1\nlog_min_error_statement = debug1\n");
$node->reload;
$node->psql('postgres', "ALTER SYSTEM SET outbox.redis_url = 'redis://outbox:wrong-$secret\@$address/0'");
$node->reload;
poll_until(sub { (stat_sink($node)->{last_error} // '') =~ /^WRONGPASS/ }, 'a wrong password is refused');
ok(poll_until(sub { log_has($node, qr/WRONGPASS.*\n.*HINT:  Check the user and password/, $from) }, 'the log says so'),
    'the log says so with a hint');

# a file

my $file = PostgreSQL::Test::Utils::tempdir() . '/password';
PostgreSQL::Test::Utils::append_to_file($file, "$secret\n");
chmod 0644, $file;
set($node, 'outbox.redis_url', "redis://outbox\@$address/0");
set($node, 'outbox.redis_password_file', $file);
poll_until(sub { (stat_sink($node)->{last_error} // '') =~ /mode 0600/ }, 'a file that others may read is refused');
ok(poll_until(sub { log_has($node, qr/WARNING: .*password file "\Q$file\E" has group or world access/, $from) }, 'the log says so'),
    'the log says so');
chmod 0600, $file;
poll_until(sub { stat_sink($node)->{state} eq 'streaming' }, 'with the right mode it is read');
run_load($node, clients => 2, transactions => 20);
wait_settled($node);
ok_streams($node, $guarded, 'a password from a file is used');
set($node, 'outbox.redis_password_file', "$file.none");
poll_until(sub { stat_sink($node)->{last_error} =~ /could not open password file/ }, 'a missing file is told');

my $log = OutboxTest::slurp_file($node->logfile);
ok($log =~ /ALTER SYSTEM/ && $log =~ /DEBUG:/, 'statements and debug messages were logged');
is(join("\n", grep { /\Q$secret\E/ } split /\n/, $log), '', 'no line of the log has the password');

done_testing();
