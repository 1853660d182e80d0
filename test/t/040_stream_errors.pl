# One stream is wrong: somebody else writes to it, it is no stream, or we may not write to it. The other streams go on, and
# what the wrong one is to have waits in order, or ends as dead letters and nowhere else.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Positions;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.max_attempts = 1000000\noutbox.retry_max = '100ms'\n");

sub foreign { return exists $_[2]{foreign} }
# with another writer on a stream its order is not promised
my @ours = (ignore => \&foreign, disturbed => 'outbox:{shop}');

sub set {
    my ($name, $value) = @_;
    $node->safe_psql('postgres', "ALTER SYSTEM SET $name = '$value'");
    $node->reload;
    return;
}

sub last_id {
    my ($key) = @_;
    my $page = $redis->cmd('XREVRANGE', $key, '+', '-', 'COUNT', 1);
    return @$page ? split /-/, $page->[0][0] : (0, 0);
}

sub events_of {
    my ($topic, $status) = @_;
    return $node->safe_psql('postgres',
        "SELECT count(*) FROM outbox.event WHERE stream = 'outbox:{$topic}' AND status = '$status'");
}

sub truth_of { return $node->safe_psql('postgres', "SELECT count(*) FROM truth WHERE topic = '$_[0]'") }
sub length_of { return $redis->cmd('XLEN', "outbox:{$_[0]}") }

sub restart_worker {
    my $pid = kill_worker($node, 'postgres', 'TERM');
    poll_until(sub { (worker_pid($node) // $pid) != $pid }, 'there is another worker');
    return;
}

# The topic has everything that is in no stream; the others are complete, now and when the rest of it comes.
sub others_flow {
    my ($topic, $what) = @_;
    my $before = $redis->published;
    poll_until(sub { $redis->published > $before + 100 }, "$what: the others flow");
    return;
}

# a foreign writer

my $hour = 3600 * 1000;
my $ahead = time * 1000 + $hour;
$redis->cmd('XADD', 'outbox:{shop}', "$ahead-7", 'foreign', 'before the first event');
run_load($node, transactions => 50);
wait_settled($node);
ok_streams($node, $redis, 'nothing is lost or doubled behind a foreign entry with a higher ID', @ours);
cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.move'), '>', 0, 'events had to be moved behind it');
is($node->safe_psql('postgres', "SELECT count(*) FROM outbox.move WHERE topic <> 'shop'"), 0, 'only those of its stream');
ok_positions($node, $redis, 'outbox.event shows where they went', @ours);

my $load = start_load($node, clients => 3, rate => 400);
my %foreign;
my $added = 0;
poll_until(
    sub {
        # alternately right behind the last entry, where the next of a batch wants to be, and further ahead
        my ($ms, $n) = last_id('outbox:{shop}');
        my $id = $added % 3 == 0 ? "$ms-" . ($n + 1) : $added % 3 == 1 ? $ms + 20 . '-0' : '*';
        $added++ if eval { $redis->cmd('XADD', 'outbox:{shop}', $id, 'foreign', $added); 1 };
        $added >= 30 && $node->safe_psql('postgres', 'SELECT EXISTS (SELECT FROM outbox.move WHERE n > 0)') eq 't';
    },
    'foreign entries came into the middle of batches');
$load->stop;
wait_settled($node);
ok_streams($node, $redis, 'nothing is lost, doubled or out of order among foreign entries', @ours);
is($node->safe_psql('postgres', "SELECT count(*) FROM outbox.move WHERE topic <> 'shop'"), 0, 'other streams are not affected');
ok_positions($node, $redis, 'outbox.event agrees with Redis', @ours);
is(stat_sink($node)->{held_streams}, 0, 'no stream is held for that');

# moves survive a crash of the worker in the middle of it
$load = start_load($node, clients => 3, rate => 400);
for my $round (1 .. 3) {
    my $moves = $node->safe_psql('postgres', 'SELECT count(*) FROM outbox.move');
    poll_until(
        sub {
            my ($ms) = last_id('outbox:{shop}');
            eval { $redis->cmd('XADD', 'outbox:{shop}', $ms + 5 . '-0', 'foreign', 'x') };
            $node->safe_psql('postgres', 'SELECT count(*) FROM outbox.move') > $moves;
        },
        'events are moved');
    my $pid = kill_worker($node);
    $load->wait unless $load->running;
    # the server does not know at once that it has to recover
    poll_until(sub { (worker_pid($node) // $pid) != $pid }, 'the server has recovered');
}
$load->stop;
wait_settled($node);
ok_streams($node, $redis, 'a worker that is killed among moves moves nothing twice', @ours);
ok_positions($node, $redis, 'and outbox.event still agrees with Redis', @ours);

# no stream at all

$redis->spoil('outbox:{wallet}');
$load = start_load($node, clients => 2, rate => 200);
poll_until(sub { stat_sink($node)->{held_streams} == 1 }, 'the stream is held');
others_flow('wallet', 'with a key of another type');
like(stat_sink($node)->{last_error}, qr/^WRONGTYPE/, 'stat_sink says why');
cmp_ok(events_of('wallet', 'failed'), '>', 0, 'events of the held stream are failed');
cmp_ok($node->safe_psql('postgres', "SELECT max(attempts) FROM outbox.event WHERE last_error LIKE 'WRONGTYPE%'"),
    '>', 0, 'with attempts and an error');
is(stat_sink($node)->{dead_letters}, 0, 'and no dead letters yet');
restart_worker();
others_flow('wallet', 'after a restart of the worker');
is(stat_sink($node)->{held_streams}, 1, 'the hold outlives the worker');
$redis->mend('outbox:{wallet}');
poll_until(sub { stat_sink($node)->{held_streams} == 0 }, 'the stream is in order again');
$load->stop;
wait_settled($node);
ok_streams($node, $redis, 'what was held comes in order after the repair', @ours);
ok_positions($node, $redis, 'and is published in outbox.event', @ours);

# A crash takes the worker back behind what Redis has of the other streams. What was held is due at once and goes well, before
# the worker has come by there again.
for my $round (1 .. 2) {
    $redis->spoil('outbox:{wallet}');
    $load = start_load($node, clients => 2, rate => 200);
    poll_until(sub { stat_sink($node)->{held_streams} == 1 }, 'the stream is held');
    others_flow('wallet', 'before a crash');
    crash($node);
    $load->stop;
    $redis->mend('outbox:{wallet}');
    $node->start;
    poll_until(sub { stat_sink($node)->{held_streams} == 0 }, 'the stream is in order again');
    wait_settled($node);
    ok_streams($node, $redis, 'what was held when the server crashed is not lost', @ours);
}
ok_positions($node, $redis, 'and is published in outbox.event', @ours);

# that stays so

$redis->spoil('outbox:{wallet}');
my $of_wallet = $redis->cmd('XLEN', 'outbox:{wallet}:aside');
$load = start_load($node, clients => 2, rate => 150);
poll_until(sub { events_of('wallet', 'failed') > 5 }, 'events are tried again');
is(stat_sink($node)->{dead_letters}, 0, 'as long as there are attempts');
set('outbox.max_attempts', 3);
poll_until(sub { stat_sink($node)->{dead_letters} > 10 }, 'events are dead letters');
others_flow('wallet', 'while events die');
$load->stop;
wait_settled($node);
is(truth_of('wallet') - $of_wallet, stat_sink($node)->{dead_letters}, 'every event of the stream is a dead letter');
is(events_of('wallet', 'dead_letter'), stat_sink($node)->{dead_letters}, 'outbox.event says so too');
is(events_of('wallet', 'failed'), 0, 'none is still failed');
is($node->safe_psql('postgres', q{
    SELECT DISTINCT topic, attempts >= 3 AND failed_at <= dead_at AND error ~ '^WRONGTYPE' FROM outbox.dead_letter}),
    'wallet|t', 'a dead letter says how often and why');
$redis->mend('outbox:{wallet}');
run_load($node, transactions => 50);
wait_settled($node);
cmp_ok(length_of('wallet'), '>', $of_wallet, 'new events go through after the repair');
dead_and_buried('dead letters stay dead');
restart_worker();
run_load($node, transactions => 50);
wait_settled($node);
dead_and_buried('also after a restart of the worker');

# Exactly the dead letters are missing from the streams, and the rest is in order.
sub dead_and_buried {
    my ($name) = @_;
    my $found = check_streams($node, $redis, @ours);
    my $there = event_ids($redis);
    my @dead = split /\n/, $node->safe_psql('postgres', 'SELECT DISTINCT event_id FROM outbox.dead_letter');
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is_deeply(
        [ @$found{qw(lost ghost duplicated out_of_order corrupt unordered_ids)}, scalar grep { $there->{$_} } @dead ],
        [ scalar @dead, 0, 0, 0, 0, 0, 0 ], $name) or diag(join "\n", @{ $found->{details} });
    return;
}

# a stream at its end: nobody can append to it any more

my ($dead, $in_billing) = (stat_sink($node)->{dead_letters}, length_of('billing'));
my $truth_of_billing = truth_of('billing');
set('outbox.max_attempts', 1000000);
$redis->cmd('XADD', 'outbox:{billing}', '18446744073709551615-18446744073709551615', 'foreign', 'the last');
$load = start_load($node, clients => 2, rate => 150);
poll_until(sub { events_of('billing', 'failed') > 5 }, 'events behind the last ID fail');
others_flow('billing', 'with a stream at its end');
set('outbox.max_attempts', 3);
poll_until(sub { stat_sink($node)->{dead_letters} > $dead }, 'events behind the last ID are dead letters');
others_flow('billing', 'with a stream at its end');
$load->stop;
wait_settled($node);
dead_and_buried('an exhausted stream has its events as dead letters, the others everything');
is(length_of('billing'), $in_billing + 1, 'nothing was appended to it');
is(events_of('billing', 'dead_letter'), truth_of('billing') - $truth_of_billing, 'all of its events are dead letters');

# a year that is not ours, which XADD would accept to follow

my $in_identity = length_of('identity');
$redis->cmd('XADD', 'outbox:{identity}', '4102444800000-0', 'foreign', 'the year 2100');
run_load($node, clients => 2, transactions => 15);
poll_until(sub { flush($node) }, 'every event is published or dead');
is(length_of('identity'), $in_identity + 1, 'nothing follows an ID of the far future');
cmp_ok(events_of('identity', 'dead_letter'), '>', 0, 'its events are dead letters');
my ($highest) = sort { $b <=> $a } map { (last_id("outbox:{$_}"))[0] } qw(shop wallet audit);
cmp_ok($highest, '<', 4102444800000 / 2, 'and no other stream was dragged along');
dead_and_buried('the other streams are complete');

# rights

my $guarded = OutboxTest::Redis->new;
$guarded->cmd('ACL', 'SETUSER', 'outbox', 'on', '>secret', 'resetkeys', '-@all',
    map({ "+$_" } qw(select client|setname watch get set multi exec discard xadd xrange xinfo|stream xinfo|groups xpending xlen info)),
    map({ "~outbox:{$_}" } qw(shop wallet identity billing)), '~outbox:sink:*');
my $granted = new_node(
    name => 'granted',
    url => 'redis://outbox:secret@127.0.0.1:' . $guarded->port . '/0',
    conf => "outbox.max_attempts = 1000000\noutbox.retry_max = '100ms'\noutbox.connect_timeout = '30s'\noutbox.response_timeout = '30s'\n");
$load = start_load($granted, clients => 2, rate => 150);
poll_until(sub { stat_sink($granted)->{held_streams} == 1 }, 'the forbidden stream is held');
wait_for_streams($guarded, 300);
like(stat_sink($granted)->{last_error}, qr/^NOPERM/, 'stat_sink says that it is forbidden');
is($guarded->cmd('EXISTS', 'outbox:{audit}'), 0, 'nothing is in it');
is(stat_sink($granted)->{state}, 'streaming', 'the sink as a whole is not stopped by that') or diag explain stat_sink($granted);
ok(!log_has($granted, qr/WARNING:  .* Redis at .*NOPERM/), 'nor is its connection given up');
$guarded->cmd('ACL', 'SETUSER', 'outbox', '~outbox:*');
poll_until(sub { stat_sink($granted)->{held_streams} == 0 }, 'the stream is in order again');
$load->stop;
wait_settled($granted);
ok_streams($granted, $guarded, 'what was forbidden comes in order once it is allowed');
is(stat_sink($granted)->{dead_letters}, 0, 'with no dead letters');

# exactly these rights are enough for a whole life: a foreign entry, lost data, a killed worker
$guarded->cmd('ACL', 'LOG', 'RESET');
$guarded->cmd('XADD', 'outbox:{shop}', time * 1000 + 5000 . '-0', 'foreign', 'x');
run_load($granted, transactions => 30);
kill_worker($granted);
poll_until(sub { flush($granted) }, 'the worker is back');
$guarded->cmd('FLUSHALL');
run_load($granted, transactions => 30);
wait_settled($granted);
ok_streams($granted, $guarded, 'a user with the documented rights does all of a worker\'s work', @ours);
is_deeply($guarded->cmd('ACL', 'LOG'), [], 'and asks for no other');

# without one of them the sink stops and says so: it does not work half blind
for my $right (qw(select watch get set multi exec discard xadd xinfo|stream)) {
    $guarded->cmd('ACL', 'SETUSER', 'outbox', "-$right");
    $guarded->cmd('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
    emit_some($granted, 5);
    poll_until(sub { stat_sink($granted)->{state} eq 'backing off' && stat_sink($granted)->{last_error} =~ /NOPERM|no permissions/ },
        "a user without $right is refused");
    $guarded->cmd('ACL', 'SETUSER', 'outbox', "+$right");
    poll_until(sub { flush($granted) }, "with $right it works again");
}
ok_streams($granted, $guarded, 'each right that is missing is told, and nothing is lost for it', @ours);

# a chunk of a backlog fails in part: the one that is queued behind it is taken back, and the connection lives on

$guarded->cmd('ACL', 'LOG', 'RESET');
$granted->safe_psql('postgres', "SELECT outbox.pause('default')");
poll_until(sub { stat_sink($granted)->{state} eq 'paused' }, 'the sink is paused');
emit_some($granted, 4000);
$guarded->spoil('outbox:{shop}');
my $log_from = -s $granted->logfile;
$guarded->cmd('CONFIG', 'RESETSTAT');
$granted->safe_psql('postgres', "SELECT outbox.resume('default')");
poll_until(sub { stat_sink($granted)->{held_streams} == 1 }, 'the stream is held');
$guarded->mend('outbox:{shop}');
wait_settled($granted);
like($guarded->cmd('INFO', 'commandstats'), qr/cmdstat_discard:calls=[1-9]/, 'what was queued behind a failure is taken back');
ok(!log_has($granted, qr/lost Redis|could not (work with|connect to) Redis/, $log_from), 'which costs no connection');
is_deeply($guarded->cmd('ACL', 'LOG'), [], 'and asks for no further right') or diag explain $guarded->cmd('ACL', 'LOG');
ok_streams($granted, $guarded, 'nothing is lost, doubled or out of order for it', @ours);

done_testing();
