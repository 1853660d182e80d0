# Trimming: what every group has acknowledged goes, and nothing else, whoever reads at what speed and whatever is killed meanwhile;
# or what the operator's limits say. It is never taken for a loss, nor a loss for it.
use strict;
use warnings;
use Test::More;
use Time::HiRes qw(time);

use OutboxTest;

my $redis = OutboxTest::Redis->new;
# what the README lists
$redis->cmd('ACL', 'SETUSER', 'outbox', 'on', '>pw', 'resetchannels', '~outbox:*',
    map { "+$_" } qw(select client|setname watch multi exec discard get set xadd xrange xinfo|stream xinfo|groups xpending xlen info eval xtrim));
my $node = new_node(redis => $redis, url => "unix://outbox:pw\@" . $redis->socket, conf => "outbox.consumer_interval = '100ms'\n");
my @streams = map { "outbox:{$_}" } qw(audit billing identity shop wallet);

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub alter { my ($options) = @_; return one("SELECT outbox.alter_sink('default', $options)") }
sub lengths { return $redis->cmds(map { [ 'XLEN', $_ ] } @streams) }
sub sum { my $sum = 0; $sum += $_ for @_; return $sum }
sub emit { my ($n, $topic) = @_; return one("SELECT count(outbox.emit('$topic.thing.happened', '{}')) FROM generate_series(1, $n)") }
sub trimmed { return stat_sink($node)->{trimmed} // 0 }

# The worker has gone through all streams twice: in full at least once since the call. There must be a group.
sub wait_for_looks {
    my $last = one('SELECT clock_timestamp()');
    for (1 .. 2) {
        poll_until(sub { one("SELECT min(refreshed_at) > '$last' FROM outbox.stat_consumer") eq 't' }, 'the worker looks at the streams');
        $last = one('SELECT max(refreshed_at) FROM outbox.stat_consumer');
    }
    return;
}

# off is the default, and a stream that nobody reads is not trimmed

run_load($node, clients => 2, transactions => 40);
emit_some($node, 20);    # some in each stream, whatever the load chose
ok(flush($node), 'there are events');
alter("trimming => 'consumed'");
my $before = sum(lengths());
$redis->cmd('XGROUP', 'CREATE', 'outbox:{other}', 'somebody', '$', 'MKSTREAM');
one("SELECT outbox.emit('other.thing.happened', '{}')");
wait_for_looks();
is(sum(lengths()), $before, 'without a group nothing is trimmed');

# three groups of different speeds, while events flow and the worker is killed

my %speed = (fast => 300, slow => 25, sloppy => 60);
my (%got, %kept);    # group, stream => event ids in order; entries that are not acknowledged
for my $stream (@streams) { $redis->cmd('XGROUP', 'CREATE', $stream, $_, '0') for sort keys %speed }
my @lost;

sub take {
    my ($group, $stream, $count, $acknowledge) = @_;
    my $reply = $redis->cmd('XREADGROUP', 'GROUP', $group, 'one', 'COUNT', $count, 'STREAMS', $stream, '>') or return 0;
    my @entries = @{ $reply->[0][1] };
    push @{ $got{$group}{$stream} }, map { my %fields = @{ $_->[1] }; $fields{event_id} } @entries;
    my $kept = $kept{$group}{$stream} //= [];
    push @$kept, map { $_->[0] } @entries;
    my @done = grep { $acknowledge->() } @$kept;
    my %done = map { $_ => 1 } @done;
    @$kept = grep { !$done{$_} } @$kept;
    $redis->cmd('XACK', $stream, $group, @done) if @done;
    return scalar @entries;
}

sub look_for_lost {
    for my $group (keys %kept) {
        for my $stream (keys %{ $kept{$group} }) {
            my @ids = @{ $kept{$group}{$stream} };
            my @found = $redis->cmds(map { [ 'XRANGE', $stream, $_, $_ ] } @ids);
            push @lost, map { "$ids[$_] of $stream, pending in $group" } grep { !@{ $found[$_] } } 0 .. $#ids;
        }
    }
    return;
}

my $load = start_load($node, clients => 2, rate => 250);
my $until = time + 2;
my ($round, $killed) = (0);
# as many rounds as it takes for all of it to happen, but no more events, also where a round takes seconds
while ($load || $round < 12) {
    for my $group (sort keys %speed) {
        for my $stream (@streams) {
            take($group, $stream, $speed{$group}, $group eq 'sloppy' ? sub { rand() < 0.3 } : sub { 1 });
        }
    }
    look_for_lost();
    # another consumer takes some over, as it does from one that is gone
    my ($stream) = grep { @{ $kept{sloppy}{$_} // [] } } @streams;
    $redis->cmd('XCLAIM', $stream, 'sloppy', 'two', 0, $kept{sloppy}{$stream}[0]) if $stream;
    $killed = kill_worker($node) if ++$round == 5;
    if ($load && $killed && time > $until) {
        $load->stop;
        undef $load;
    }
}
wait_recovered($node, $killed);
wait_settled($node);
poll_until(sub { trimmed() > 0 }, 'something was trimmed while the groups read');
poll_until(
    sub {
        my $more = 0;
        for my $stream (@streams) { $more += take($_, $stream, 500, sub { $_[0] = 1; 1 }) for qw(fast slow) }
        $more += take('sloppy', $_, 500, sub { 0 }) for @streams;
        look_for_lost();
        !$more;
    },
    'all groups have read everything');
is_deeply([ @lost > 5 ? @lost[ 0 .. 4 ] : @lost ], [], 'no pending entry was trimmed');
my @truth = split /\n/, one('SELECT event_id FROM truth ORDER BY 1');
for my $group (sort keys %speed) {
    is_deeply([ sort map { @$_ } values %{ $got{$group} } ], \@truth, "group $group got every event, once: none was trimmed unread");
}
for my $stream (grep { @{ $kept{sloppy}{$_} } } @streams) {
    poll_until(sub { $redis->cmd('XRANGE', $stream, '-', '+', 'COUNT', 1)->[0][0] eq $kept{sloppy}{$stream}[0] },
        "$stream begins with what the last group has pending");
}
wait_for_looks();
look_for_lost();
is(scalar @lost, 0, 'the streams are trimmed up to the first pending entries, and no further');
for my $stream (@streams) { $redis->cmd('XACK', $stream, 'sloppy', @{ $kept{sloppy}{$stream} }) if @{ $kept{sloppy}{$stream} } }
poll_until(sub { sum(lengths()) == 0 }, 'with the last acknowledgement the streams are empty');
my $added = 0;
for my $stream (@streams) { my %info = @{ $redis->cmd('XINFO', 'STREAM', $stream) }; $added += $info{'entries-added'} }
is($added, scalar @truth, 'all of it was there once');
is(stat_sink($node)->{healed}, 0, 'trimming is no loss');
unlike(PostgreSQL::Test::Utils::slurp_file($node->logfile), qr/has lost/, 'and the log knows of none');
is(one("SELECT string_agg(DISTINCT finding, ',') FROM outbox.verify()"), 'trimmed', 'verify() says trimmed, and nothing else');
is(one("SELECT sum(entries) FROM outbox.verify()"), scalar @truth, 'of so many entries');

# empty streams go on; after a crash of the server, too

emit_some($node, 40);
$node->stop('immediate');
$node->start;
emit_some($node, 40);
ok(flush($node), 'events go on');
is(sum(lengths()), 80, 'into the empty streams, once each');
is(one("SELECT count(*) FROM outbox.verify() WHERE finding <> 'trimmed'"), 0, 'as verify() says');

# limits on what is kept of the consumed

alter('max_length => 25');
emit(300, 'billing');
ok(flush($node), 'there are more');
take('fast', $_, 1000, sub { 1 }) for @streams;
take('slow', $_, 1000, sub { 1 }) for @streams;
wait_for_looks();
is(sum(lengths()), 380, 'what one group has not read stays, whatever the limit');
take('sloppy', $_, 1000, sub { 1 }) for @streams;
my $expected = sum(map { $_ > 25 ? 25 : $_ } lengths());
poll_until(sub { sum(lengths()) == $expected }, 'then as many as max_length stay');
pass('max_length is kept to the entry');
alter("max_length => 0, max_age => '1 hour'");
wait_for_looks();
is(sum(lengths()), $expected, 'what is younger than max_age stays');
alter("max_age => '50 ms'");
poll_until(sub { sum(lengths()) == 0 }, 'what is older goes');
pass('max_age counts from the ID of an entry');
alter("max_age => '0'");

# whoever has not the sink trims nothing

emit(50, 'billing');
ok(flush($node), 'there are events');
one('SELECT outbox.pause()');
# (stat_sink says so at once, the worker when it knows)
poll_until(sub { one('SELECT state FROM outbox.worker_state() WHERE sink_id = 1') eq 'paused' }, 'the sink is paused');
take($_, 'outbox:{billing}', 20, sub { 1 }) for qw(fast slow sloppy);
is($redis->cmd('XLEN', 'outbox:{billing}'), 50, 'a sink that is paused trims nothing');
one('SELECT outbox.resume()');
poll_until(sub { $redis->cmd('XLEN', 'outbox:{billing}') == 30 }, 'one that goes on does');
my $uuid = one('SELECT uuid FROM outbox.sink');
my @ids = map { $_->[0] } @{ $redis->cmd('XRANGE', 'outbox:{billing}', '-', '+') };
take($_, 'outbox:{billing}', 30, sub { 0 }) for qw(fast slow sloppy);
my $marker = $redis->cmd('GET', "outbox:sink:$uuid");
$redis->all([ 'SET', "outbox:sink:$uuid", "00$marker" ], [ 'SET', "outbox:sink:$uuid:lease", 'other@elsewhere', 'PX', 60000 ],
    map { [ 'XACK', 'outbox:{billing}', $_, @ids ] } qw(fast slow sloppy));
poll_until(sub { stat_sink($node)->{state} eq 'fenced' }, 'another server has the sink');
is($redis->cmd('XLEN', 'outbox:{billing}'), 30, 'this one has trimmed nothing since');
$redis->all([ 'SET', "outbox:sink:$uuid", $marker ], [ 'DEL', "outbox:sink:$uuid:lease" ]);
poll_until(sub { $redis->cmd('XLEN', 'outbox:{billing}') == 0 }, 'when it has it again it does');

# Redis loses everything: what is retained comes back, and nothing is cut off while it does

$redis->cmd('FLUSHALL');
poll_until(sub { ($redis->cmd('XLEN', 'outbox:{billing}') // 0) > 0 && stat_sink($node)->{state} eq 'streaming' }, 'the sink heals');
ok(flush($node), 'and is done');
ok_streams($node, $redis, 'everything is there again, once and in order',
    ignore => sub { my ($key, $id, $fields) = @_; return ($fields->{event_type} // '') =~ /thing\.happened$/ });
is(one('SELECT count(*) FROM outbox.verify()'), 0, 'as verify() says');

# limits, whoever has read what

$redis->cmd('XGROUP', 'CREATE', 'outbox:{billing}', 'fast', '0');
$redis->cmd('XREADGROUP', 'GROUP', 'fast', 'one', 'COUNT', 5, 'STREAMS', 'outbox:{billing}', '>');
$redis->cmd('XADD', 'outbox:{billing}:dlq:fast', '*', 'error', $_) for 1 .. 30;
alter("trimming => 'limits', max_length => 10");
poll_until(sub { !grep { $_ != 10 } lengths() }, 'every stream has as many entries as the limit says');
is($redis->cmd('XLEN', 'outbox:{billing}:dlq:fast'), 30, 'dead letters are not trimmed');
alter("max_length => 0, max_age => '50 ms'");
poll_until(sub { sum(lengths()) == 0 }, 'or none, when all are too old');
is(one("SELECT count(*) FROM outbox.verify() WHERE finding <> 'trimmed'"), 0, 'that is no loss, either');
alter("trimming => 'off'");
emit_some($node, 20);
ok(flush($node), 'events go on');
wait_for_looks();
is(sum(lengths()), 20, 'and stay when trimming is off');

# many entries go in steps

alter("trimming => 'consumed', max_age => '0'");
emit(25000, 'bulk');
ok(flush($node), 'there is a long stream');
$redis->cmd('XGROUP', 'CREATE', 'outbox:{bulk}', 'late', '$');
poll_until(sub { $redis->cmd('XLEN', 'outbox:{bulk}') == 0 }, 'it is trimmed to its end');
# counted when Redis has answered, and once: another look changes nothing
poll_until(sub { trimmed() >= 25000 }, 'the worker knows');
wait_for_looks();
is(trimmed(), 25000, 'and every entry counted once');

# a full Redis is trimmed, so that it is not full any more: also by a worker that has just begun

alter('max_length => 0');
$redis->cmd('DEL', 'outbox:{audit}:dlq:fast', 'outbox:{billing}:dlq:fast');
my %memory = $redis->cmd('INFO', 'memory') =~ /^(used_memory):(\d+)/m;
$redis->cmd('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');
$redis->cmd('CONFIG', 'SET', 'maxmemory', $memory{used_memory} + 4_000_000);
$redis->cmd('XGROUP', 'CREATE', 'outbox:{large}', 'reader', '0', 'MKSTREAM');
one("SELECT count(outbox.emit('large.thing.happened', to_json(repeat('x', 1000))::text)) FROM generate_series(1, 6000)");
poll_until(sub { (stat_sink($node)->{last_error} // '') =~ /^OOM/ }, 'Redis is full');
# asked anew each time: a little more may have gone in
poll_until(
    sub {
        one(q{SELECT ms || '-' || n FROM outbox.checkpoint WHERE sink_id = 1})
            eq { @{ $redis->cmd('XINFO', 'STREAM', 'outbox:{large}') } }->{'last-generated-id'};
    },
    'what was confirmed is written down');
# so full that not even the marker can be written
($memory{used_memory}) = $redis->cmd('INFO', 'memory') =~ /^used_memory:(\d+)/m;
$redis->cmd('CONFIG', 'SET', 'maxmemory', $memory{used_memory} - 1_000_000);
wait_recovered($node, kill_worker($node));
my $read = 0;
poll_until(
    sub {
        # (a group's pending list would need room as well)
        my $reply = $redis->cmd('XREADGROUP', 'GROUP', 'reader', 'one', 'COUNT', 500, 'NOACK', 'STREAMS', 'outbox:{large}', '>');
        $read += @{ $reply->[0][1] } if $reply;
        $read == 6000;
    },
    'all events come through');
ok(flush($node), 'a full Redis gets room by itself');
$redis->cmd('CONFIG', 'SET', 'maxmemory', 0);

# without the rights events flow, and the log says what is missing

my $offset = -s $node->logfile;
$redis->cmd('ACL', 'SETUSER', 'outbox', '-xtrim');
alter("trimming => 'limits', max_length => 1");
poll_until(sub { log_has($node, qr/WARNING:  could not trim stream "outbox:\{\w+\}" of sink "default": /, $offset) },
    'the log tells of a missing right');
emit_some($node, 5);
ok(flush($node), 'events go on without it');

done_testing();
