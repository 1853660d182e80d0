# outbox.verify(): what is missing, misplaced, extra or trimmed in the streams is named, entry by entry, and nothing else is.
use strict;
use warnings;
use POSIX ();
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;
use OutboxTest::Positions;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.retry_max = '100ms'\nmax_worker_processes = 16\n");

# rows as finding|stream|expected|found|event_id|entries
sub verify {
    my ($arguments, $on) = @_;
    return ($on // $node)->safe_psql('postgres',
        'SELECT finding, stream, expected, found, event_id, entries FROM outbox.verify(' . ($arguments // '') . ')');
}

sub clean {
    my ($name, $on) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(verify('', $on), '', $name);
}

sub fails {
    my ($sql, $regex, $name) = @_;
    my ($status, undef, $err) = $node->psql('postgres', $sql);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    isnt($status, 0, "$name: an error");
    return like($err, $regex, $name);
}

# the entries of a stream, and one of them in the words of XADD
sub entry_at { my ($topic, $i) = @_; return ($redis->entries("outbox:{$topic}"))[$i] }
sub words_of { my ($entry) = @_; return map { ($_, $entry->[1]{$_}) } @{ $entry->[2] } }

is(verify(), '', 'nothing was ever emitted: nothing is wrong');
run_load($node, clients => 2, transactions => 100);
wait_settled($node);
clean('what a load has published is all there');
my (undef, undef, $notice) = $node->psql('postgres', 'SELECT * FROM outbox.verify()');
my $committed = committed($node);
like($notice, qr/NOTICE: .*: $committed events of \d+ ticks were compared with $committed entries of \d+ streams/,
    'and how much was compared is said');
unlike($notice, qr/left out/, 'nothing was left out');

# one entry, in each way

my $entry = entry_at('shop', 3);
$redis->cmd('XDEL', 'outbox:{shop}', $entry->[0]);
is(verify(), "missing|outbox:{shop}|$entry->[0]||$entry->[1]{event_id}|1", 'a deleted entry is missing');
my $again = $redis->cmd('XADD', 'outbox:{shop}', '*', words_of($entry));
is(verify(), "misplaced|outbox:{shop}|$entry->[0]|$again|$entry->[1]{event_id}|1", 'appended again it is misplaced');
$redis->cmd('XDEL', 'outbox:{shop}', $again);
$again = $redis->cmd('XADD', 'outbox:{audit}', '*', words_of($entry));
is(verify(), "misplaced|outbox:{shop}|$entry->[0]|$again|$entry->[1]{event_id}|1", 'in another stream, too');
is($node->safe_psql('postgres', 'SELECT detail FROM outbox.verify()'), 'the event is in outbox:{audit}', 'which is named');
$redis->cmd('XDEL', 'outbox:{audit}', $again);

my $other = entry_at('billing', 5);
$again = $redis->cmd('XADD', 'outbox:{billing}', '*', words_of($other));
my $foreign = $redis->cmd('XADD', 'outbox:{wallet}', '*', 'foreign', 'x');
my $unknown = '00000000-0000-7000-8000-000000000001';
my $ghost = $redis->cmd('XADD', 'outbox:{wallet}', '*', 'event_id', $unknown, 'event_type', "a\nb.c");
my $found = join "\n", "extra|outbox:{billing}||$again|$other->[1]{event_id}|1",
    "missing|outbox:{shop}|$entry->[0]||$entry->[1]{event_id}|1",
    "extra|outbox:{wallet}||$foreign||1", "extra|outbox:{wallet}||$ghost|$unknown|1";
is(verify(), $found, 'a second entry of an event, and those of others, are extra');
like($node->safe_psql('postgres', "SELECT detail FROM outbox.verify() WHERE finding = 'extra' AND event_id IS NOT NULL"),
    qr/^its event has another place; event type "[a-z.]+": $other->[0] in outbox:\{billing\}\nno retained event has its id; event type "a\\x0ab\.c"$/,
    'with what is known of them');
$redis->cmd('XDEL', 'outbox:{billing}', $again);
$redis->cmd('XDEL', 'outbox:{wallet}', $foreign, $ghost);

# the same stays true when the sink has gone on behind them, also where the numbers of both sides are the same
$again = $redis->cmd('XADD', 'outbox:{shop}', '*', words_of($entry));
run_load($node, clients => 2, transactions => 20);
wait_settled($node);
is(verify(), "misplaced|outbox:{shop}|$entry->[0]|$again|$entry->[1]{event_id}|1", 'an entry among others is seen to be misplaced');
$redis->cmd('XDEL', 'outbox:{shop}', $again);
my $missing = "missing|outbox:{shop}|$entry->[0]||$entry->[1]{event_id}|1";
is(verify(), $missing, 'nothing else is found when the sink has gone on');
my ($ms) = split /-/, $entry->[0];
my $at = "to_timestamp($ms / 1000.0)";
is(verify("since => $at, until => $at"), $missing, 'the tick is in the time from and up to itself');
is(verify("since => $at + interval '1 ms'"), '', 'and not in that behind it');
is(verify("until => $at - interval '1 ms'"), '', 'nor before it');
is(verify("since => '-infinity', until => 'infinity'"), $missing, 'infinity is no limit');
is(verify("since => 'infinity'"), '', 'from the end of time on there is nothing');
fails("SELECT * FROM outbox.verify(since => now(), until => now() - interval '1 s')", qr/since must not be later than until/, 'the wrong way round');
fails("SELECT * FROM outbox.verify('nowhere')", qr/sink "nowhere" does not exist.*HINT:/s, 'a sink that is not there');
fails('SELECT * FROM outbox.verify(NULL)', qr/sink must not be null/, 'no sink');

# what is missing can be emitted again, which does not fill the gap

is($node->safe_psql('postgres', q{
    SELECT count(outbox.emit(e.event_type, e.payload, e.aggregate_id, e.aggregate_type, e.version, e.headers::jsonb, e.topic,
                             e.occurred_at, e.event_id))
      FROM outbox.verify() v JOIN outbox.event e USING (event_id) WHERE v.finding = 'missing'}), 1, 'it is emitted again');
ok(flush($node), 'and published');
is(event_ids($redis)->{ $entry->[1]{event_id} }, 1, 'so it is in the stream');
is(verify(), $missing, 'and still missing where it was');

# trimmed is told apart

my $identity = 'outbox:{identity}';
my ($first, @rest) = $redis->entries($identity);
my $length = 1 + @rest;
$redis->cmd('XTRIM', $identity, 'MINID', $rest[18][0]);
is(verify(), "trimmed|$identity|$first->[0]|||19\n$missing", 'what was trimmed is one row, with a count');
is($node->safe_psql('postgres', "SELECT detail FROM outbox.verify() WHERE finding = 'trimmed'"),
    "entries up to $rest[17][0] were trimmed", 'and its end');
$redis->cmd('XDEL', $identity, $rest[30][0]);
is(verify(), "trimmed|$identity|$first->[0]|||19\nmissing|$identity|$rest[30][0]||$rest[30][1]{event_id}|1\n$missing",
    'an entry that was deleted is still missing');
$redis->cmd('XTRIM', $identity, 'MAXLEN', 0);
is(verify(), "trimmed|$identity|$first->[0]|||" . ($length - 1)
    . "\nmissing|$identity|$rest[30][0]||$rest[30][1]{event_id}|1\n$missing", 'a stream trimmed to nothing');

# a stream that was deleted has not been trimmed, whatever happens to its successor

my @billing = $redis->entries('outbox:{billing}');
$redis->cmd('DEL', 'outbox:{billing}');
is_deeply([ grep { /billing/ } split /\n/, verify() ],
    [ map { "missing|outbox:{billing}|$_->[0]||$_->[1]{event_id}|1" } @billing ], 'each entry of a deleted stream is missing');
run_load($node, clients => 2, transactions => 40);
$node->safe_psql('postgres', 'SELECT load.step(4) FROM generate_series(1, 5)');    # these are of "billing", whatever the load was
wait_settled($node);
is_deeply([ grep { /billing/ } split /\n/, verify() ],
    [ map { "missing|outbox:{billing}|$_->[0]||$_->[1]{event_id}|1" } @billing ], 'and stays so when the sink goes on with a new one');
my ($new) = $redis->entries('outbox:{billing}');
$redis->cmd('XTRIM', 'outbox:{billing}', 'MAXLEN', $redis->cmd('XLEN', 'outbox:{billing}') - 3);
is_deeply([ grep { /billing/ } split /\n/, verify() ], [ "missing|outbox:{billing}|$billing[0][0]|||" . @billing ],
    'no more than was taken out can have been trimmed');

# a healed loss

$redis->cmd('FLUSHALL');
poll_until(sub { stat_sink($node)->{healed} >= committed($node) && stat_sink($node)->{state} eq 'streaming' }, 'it is healed');
wait_settled($node);
clean('after everything was lost and appended again nothing is missing');

# a loss that nobody can heal: the sink is paused

pause_sink($node);
emit_some($node, 30);
clean('what waits in a paused sink is not missing');
my @before = map { my $key = $_; map { "missing|$key|$_->[0]||$_->[1]{event_id}|1" } $redis->entries($key) } $redis->streams;
$redis->cmd('FLUSHALL');
is_deeply([ split /\n/, verify() ], \@before, 'every entry that a FLUSHALL has taken is missing');
is($redis->published, 0, 'and none is brought back by looking');
$node->safe_psql('postgres', 'SELECT outbox.resume()');
wait_settled($node);
clean('resumed, the sink is healed');

# others own places, so events were moved

$redis->cmd('XADD', 'outbox:{shop}', int(time * 1000) + 3_600_000 . '-7', 'foreign', 1);
run_load($node, clients => 2, transactions => 50);
wait_settled($node);
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.move'), '>', 0, 'events were moved');
$found = verify();
like($found, qr/^extra\|outbox:\{shop\}\|\|\d+-7\|\|1$/, 'moved events are where they should be: only the foreign entry is told');
my ($moved) = split /\n/, $node->safe_psql('postgres', q{
    SELECT e.position || '|' || e.event_id FROM outbox.event e JOIN outbox.move m ON e.position = m.to_ms || '-' || m.n
     WHERE e.topic = m.topic LIMIT 1});
my ($moved_to, $moved_id) = split /\|/, $moved;
$redis->cmd('XDEL', 'outbox:{shop}', $moved_to);
is(verify(), "$found\nmissing|outbox:{shop}|$moved_to||$moved_id|1", 'and missing when one is not there');
$redis->cmd('FLUSHALL');
poll_until(sub { verify() eq '' }, 'it is healed');

# a load goes on: what is under way is neither missing nor extra

my $load = start_load($node, clients => 2, rate => 300);
my $looks = 0;
my $until = time + 3;
while (time < $until || $looks < 10) {
    my $seen = verify();
    is($seen, '', 'under load') if $seen ne '' || !$looks;
    $looks++;
}
$load->stop;
wait_settled($node);
cmp_ok($looks, '>=', 10, 'looked at while events were published');
clean('and is all there in the end');

# held streams and dead letters

$node->safe_psql('postgres', "ALTER SYSTEM SET outbox.max_attempts = 1000000");
$node->reload;
$redis->spoil('outbox:{wallet}');
run_load($node, clients => 2, transactions => 30);
poll_until(sub { stat_sink($node)->{held_streams} == 1 && stat_sink($node)->{lag_events} == 0 }, 'the stream is held, the others go on');
is((grep { !/^missing\|outbox:\{wallet\}/ } split /\n/, verify()), 0, 'of a key that is no stream all is missing,');
is((split /\n/, verify()), $redis->cmd('XLEN', 'outbox:{wallet}:aside'), 'but not what is held back');
$redis->mend('outbox:{wallet}');
wait_settled($node);
clean('released, it is all there');
$node->safe_psql('postgres', "ALTER SYSTEM SET outbox.max_attempts = 2");
$node->reload;
$redis->spoil('outbox:{wallet}');
run_load($node, clients => 2, transactions => 20);
poll_until(sub { flush($node) && stat_sink($node)->{dead_letters} > 0 }, 'there are dead letters');
$redis->mend('outbox:{wallet}');
clean('dead letters are not missing');
my $letter = $node->safe_psql('postgres', 'SELECT event_id FROM outbox.dead_letter LIMIT 1');
my $risen = $redis->cmd('XADD', 'outbox:{wallet}', '*', 'event_id', $letter);
is($node->safe_psql('postgres', 'SELECT finding, found, event_id, detail FROM outbox.verify()'),
    "extra|$risen|$letter|its event is a dead letter", 'but extra when they are there');
$redis->cmd('XDEL', 'outbox:{wallet}', $risen);
$node->safe_psql('postgres', 'ALTER SYSTEM RESET outbox.max_attempts');
$node->reload;

# Redis hangs, and is gone

# longer than anything here may take: who waits for an answer waits until he is told not to
sub wait_for_answers {
    my ($how) = @_;
    $node->safe_psql('postgres', "ALTER SYSTEM $how");
    $node->reload;
}
wait_for_answers(q{SET outbox.response_timeout = '120s'});
$redis->sigstop;
my $began = time;
fails("SET statement_timeout = '300ms'; SELECT * FROM outbox.verify()", qr/canceling statement due to statement timeout/,
    'a Redis that hangs does not keep the caller from its time-out');
cmp_ok(time - $began, '<', 60, 'at once');
my $verifiers = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox verifier'};
poll_until(sub { $node->safe_psql('postgres', $verifiers) == 0 }, 'its worker is gone');

# in the background, for a look at both
sub verify_in_background {
    my ($in) = @_;
    my $pid = fork // die "fork: $!";
    if ($pid == 0) {
        open STDERR, '>', $node->basedir . '/verify.err';
        open STDOUT, '>', $node->basedir . '/verify.out';
        exec 'psql', '-XAt', '-h', $node->host, '-p', $node->port, '-d', $in // 'postgres', '-c', 'SELECT * FROM outbox.verify()'
            or POSIX::_exit(127);
    }
    return $pid;
}
sub verifying {
    my ($db) = @_;
    return poll_until(sub { $node->safe_psql($db // 'postgres', "SELECT pid || ' ' || worker_pid FROM outbox.stat_verify") }, 'it is under way');
}
sub ended {
    my ($pid, $regex, $name) = @_;
    my $status;
    poll_until(sub { waitpid($pid, POSIX::WNOHANG()) == $pid and $status = $?, 1 }, 'the caller is back');
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return like(OutboxTest::slurp_file($node->basedir . '/verify.err'), $regex, $name);
}

for my $how ('pg_cancel_backend', 'pg_terminate_backend') {
    my $psql = verify_in_background();
    my ($caller, $worker) = split / /, verifying();
    my @sockets = grep { defined && /socket/ } map { readlink } glob "/proc/$caller/fd/*";
    my @others = grep { defined && /socket/ } map { readlink } glob "/proc/$worker/fd/*";
    is($node->safe_psql('postgres', "SELECT sink FROM outbox.stat_verify"), 'default', 'stat_verify names the sink');
    ok(poll_until(
            sub {
                $node->safe_psql('postgres', "SELECT query FROM pg_stat_activity WHERE pid = $worker") =~ /^verifying sink "default": tick \d+ of \d+$/;
            },
            'the activity of the worker is there'),
        'the activity of the worker says how far it is');
    cmp_ok(scalar @sockets, '<', 2, 'the caller has the socket of its client and no other');
    $began = time;
    $node->safe_psql('postgres', "SELECT $how($caller)");
    ended($psql, $how eq 'pg_cancel_backend' ? qr/canceling statement due to user request/ : qr/terminating connection/, "$how ends it");
    poll_until(sub { $node->safe_psql('postgres', $verifiers) == 0 }, 'its worker is gone');
    cmp_ok(time - $began, '<', 60, 'without an answer');
}
my $psql = verify_in_background();
my (undef, $worker) = split / /, verifying();
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
ended($psql, qr/ERROR:  the worker that verified sink "default" was terminated\nHINT:/, 'a worker that is ended ends its caller with an error');
is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.stat_verify'), 0, 'nothing is left of it');

$node->safe_psql('postgres', 'CREATE DATABASE doomed');
prepare_database($node, 'doomed');
emit_some($node, 5, 'doomed');
poll_until(sub { $node->safe_psql('doomed', 'SELECT uuid IS NOT NULL FROM outbox.sink') eq 't' }, 'it has a sink');
$psql = verify_in_background('doomed');
verifying('doomed');
$began = time;
$node->safe_psql('postgres', 'DROP DATABASE doomed WITH (FORCE)');
cmp_ok(time - $began, '<', 60, 'DROP DATABASE does not wait for it');
ended($psql, qr/terminat/, 'but ends it');

wait_for_answers('RESET outbox.response_timeout');
fails('SELECT * FROM outbox.verify()', qr/ERROR:  could not read the streams of sink "default" from Redis at "[^"]+": no answer in time.*HINT:/s,
    'a Redis that does not answer is an error');
$redis->sigcont;
poll_until(sub { flush($node) }, 'Redis is back');

# without the sink's worker

my $aside = start_load($node, clients => 2, rate => 300);
my $published = $redis->published;
poll_until(sub { $redis->published > $published + 100 }, 'events flow');
$node->safe_psql('postgres', "ALTER SYSTEM SET outbox.enabled = off");
kill_worker($node);
$node->reload;
$aside->stop;
poll_until(sub { stat_sink($node)->{state} eq 'disabled' }, 'nothing is sent');
clean('what was appended and not yet written down as confirmed is not extra');
$node->safe_psql('postgres', "ALTER SYSTEM RESET outbox.enabled");
$node->reload;
wait_settled($node);
clean('nor later');

# no more than eight

wait_for_answers(q{SET outbox.response_timeout = '120s'});
$redis->sigstop;
my @eight = map { verify_in_background() } 1 .. 8;
poll_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM outbox.stat_verify') == 8 }, 'eight are under way');
fails('SELECT * FROM outbox.verify()', qr/ERROR:  too many sinks are being verified already\nHINT:/, 'a ninth is refused');
$node->safe_psql('postgres', 'SELECT pg_cancel_backend(pid) FROM outbox.stat_verify');
waitpid $_, 0 for @eight;
poll_until(sub { $node->safe_psql('postgres', $verifiers) == 0 }, 'they are gone');
wait_for_answers('RESET outbox.response_timeout');
$redis->sigcont;
poll_until(sub { flush($node) }, 'Redis is back');
clean('and there is room again');

$redis->stop;
fails('SELECT * FROM outbox.verify()', qr/ERROR:  could not read the streams of sink "default" from Redis at "[^"]+": No such file/,
    'one that is not there, too');

done_testing();
