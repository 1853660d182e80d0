# The server has the library of this version, a database still the SQL of 1.0: services go on emitting, the worker waits and says for what.
# ALTER EXTENSION outbox UPDATE under load then loses, doubles and reorders nothing, and what it makes is what CREATE EXTENSION makes.
use strict;
use warnings;
use IPC::Run ();
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;
use OutboxTest::Catalog;
use OutboxTest::Positions;

my $redis = OutboxTest::Redis->new;
# it must not be the poll that finds out about the update
my $node = new_node(redis => $redis, extension => 0, load => 0, conf => "outbox.poll_interval = '60s'\noutbox.response_timeout = '60s'\n");
$node->safe_psql('postgres', q{CREATE EXTENSION outbox VERSION '1.0'});
prepare_database($node, 'postgres', extension => 0);

my $version = $node->safe_psql('postgres', q{SELECT default_version FROM pg_available_extensions WHERE name = 'outbox'});
my $told = qr/this database has version 1\.0 of outbox, and the server has the library of version \Q$version\E/;
my $hint = qr/HINT:  Run ALTER EXTENSION outbox UPDATE\./;

# what one says, and how it ended
sub session {
    my ($sql, @more) = @_;
    my ($status, $out, $err) = $node->psql('postgres', $sql, @more);
    return ($status, $out, $err);
}

# between the two

poll_until(sub { stat_sink($node)->{state} eq 'wrong version' }, 'the worker waits');
my $pid = wait_for_worker($node);
like(stat_sink($node)->{last_error}, qr/^$told$/, 'the view of 1.0 says what for');
my ($status, $out, $err) = session('SELECT load.step(1), load.step(2)');
is($status, 0, 'emit() works through the functions of 1.0');
is(() = $err =~ /WARNING:  events are recorded but not published: $told\n$hint/g, 1, 'and warns, once in a session') or diag($err);
run_load($node, clients => 2, transactions => 50);
my $committed = committed($node);
is($node->safe_psql('postgres', q{SELECT count(*) FROM outbox.event WHERE status = 'pending' AND position IS NULL}), $committed,
    'the events wait');
is(stat_sink($node)->{lag_events}, $committed, 'and are counted');
($status, $out, $err) = session(q{SELECT outbox.flush('50 ms')});
is("$status $out", '0 f', 'flush() says that they are not published');
like($err, qr/WARNING:  nothing is published: $told\n$hint/, 'and why');
($status, undef, $err) = session('SELECT * FROM outbox.verify()');
like($err, qr/ERROR:  $told\n$hint/, 'verify() does not compare with tables that it does not know');
$node->safe_psql('postgres', q{SELECT outbox.pause()});
is(stat_sink($node)->{state}, 'paused', 'pause() works');
$node->safe_psql('postgres', q{SELECT outbox.resume()});
is($node->safe_psql('postgres', 'SELECT paused FROM outbox.sink; SELECT count(*) FROM outbox.stat_verify; SELECT count(*) FROM outbox.tick'),
    "f\n0\n0", 'and so do resume() and the other views');
poll_until(sub { stat_sink($node)->{state} eq 'wrong version' }, 'the worker goes on waiting');
is(wait_for_worker($node), $pid, 'all the time the same one');
is(() = PostgreSQL::Test::Utils::slurp_file($node->logfile) =~ /WARNING:  outbox worker for database \d+ waits: $told\n.*$hint/g, 1,
    'which has said so once');
is($redis->published, 0, 'and has sent nothing');

# the update, while services emit and others look

my $load = start_load($node, clients => 4, rate => 300);
my $flush = IPC::Run::start([ 'psql', '-XAtd', $node->connstr('postgres'), '-c', q{SELECT outbox.flush('60 s')} ],
    '<', \undef, '>', \my $flushed, '2>', \my $told_meanwhile);
my $looks = IPC::Run::start(
    [ 'pgbench', '-n', '-c', 2, '-R', 60, '-t', 60, '-f', '-', '-d', $node->connstr('postgres') ],
    '<', \"SELECT state FROM outbox.stat_sink;\nSELECT count(*) FROM outbox.event WHERE event_id = gen_random_uuid();\n",
    '>', \my $looked, '2>', \my $complaints);
poll_until(sub { committed($node) > $committed + 200 }, 'services emit');
($status, undef, $err) = session('ALTER EXTENSION outbox UPDATE', timeout => 60);
my $began = time;
is($status, 0, 'ALTER EXTENSION outbox UPDATE') or diag($err);
poll_until(sub { $redis->published > 0 }, 'the worker begins');
cmp_ok(time - $began, '<', 40, 'by itself, once the update is committed');
poll_until(sub { stat_sink($node)->{state} eq 'streaming' }, 'it works');
is(stat_sink($node)->{last_error} // '', '', 'and knows of no error');
is(wait_for_worker($node), $pid, 'without another start');
poll_until(sub { $redis->published > $committed + 300 }, 'what waited is published, and what has come since');
$looks->finish;
$flush->finish;
is($flushed, "t\n", 'a flush() that had waited since before the update is answered');
is($complaints =~ /ERROR/ ? $complaints : '', '', 'who looked at the views met no error');
like($looked, qr/number of transactions actually processed: [1-9]/, 'and did look');
$load->stop;
wait_settled($node);
ok_streams($node, $redis, 'nothing is lost, doubled or out of order');
ok_positions($node, $redis, 'outbox.event says where everything is');
is($node->safe_psql('postgres', 'SELECT * FROM outbox.verify()'), '', 'and verify() finds nothing');
($status, undef, $err) = session('SELECT load.step(1)');
is($err, '', 'emit() warns of nothing any more');
ok(!log_has($node, qr/deadlock detected|PANIC|TRAP|terminated by signal|cache lookup failed/), 'the log knows of no deadlock and no crash');

# what it has made

$node->safe_psql('postgres', 'CREATE DATABASE fresh');
$node->safe_psql('fresh', 'CREATE EXTENSION outbox');
my ($updated, $fresh) = (catalog($node, 'postgres'), catalog($node, 'fresh'));
cmp_ok(scalar(grep { /^extension: (has|dumps) / } @$fresh), '>', 60, 'there is something to compare');
my %of_fresh = map { $_ => 1 } @$fresh;
my %of_updated = map { $_ => 1 } @$updated;
is(join("\n", map({ "only after an update: $_" } grep { !$of_fresh{$_} } @$updated),
    map({ "only in a new installation: $_" } grep { !$of_updated{$_} } @$fresh)), '',
    'an updated database has what a new one has, and nothing else');
is($node->safe_psql('postgres', "SELECT extversion FROM pg_extension WHERE extname = 'outbox'"), $version, 'it is of the newest version');

# a library that is older than the SQL touches nothing

$node->safe_psql('fresh', "UPDATE pg_extension SET extversion = '9.9' WHERE extname = 'outbox'");
for my $sql (q{SELECT outbox.emit('a.b', '{}')}, 'SELECT outbox.flush()', 'SELECT * FROM outbox.verify()', 'SELECT count(*) FROM outbox.stat_sink') {
    ($status, undef, $err) = $node->psql('fresh', $sql);
    like($err, qr/ERROR:  this database has version 9\.9 of outbox, and the server has the library of version \Q$version\E\nHINT:  Restart/,
        "is refused by an older library: $sql");
}
$node->restart;
poll_until(sub { log_has($node, qr/outbox worker for database \d+ waits: this database has version 9\.9.*\n.*HINT:  Restart/) },
    'its worker waits, too');
($status, undef, $err) = $node->psql('fresh', q{SELECT outbox.begin_update('9.9')});
like($err, qr/ERROR:  the server has the library of outbox \Q$version\E, and not of 9\.9\nHINT:  Install the packages/,
    'and an update that comes before its library is refused');

done_testing();
