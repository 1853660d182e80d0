# A sink that starts in the past gets the history in order, at the positions that it has in the sink "default", and then goes
# live without a gap; also while events are being emitted, and when Redis loses it all again.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Positions;

my $first = OutboxTest::Redis->new(name => 'first', aof => 'always');
my $late = OutboxTest::Redis->new(name => 'late', aof => 'always');
my $node = new_node(redis => $first, conf => "max_worker_processes = 20\nmax_prepared_transactions = 20\noutbox.linger = 0\n");
my $databases = 0;

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }

# into a database of its own of the late Redis; the name is the sink's
sub create {
    my ($name, $start, $more) = @_;
    my $url = $late->url(++$databases);
    one("SELECT outbox.create_sink('$name', '$url', start => '$start'" . ($more // '') . ')');
    return $databases;
}

sub entries_in {
    my ($redis, $database, $upto) = @_;
    $redis->cmd('SELECT', $database);
    my @entries;
    for my $key ($redis->streams) {
        push @entries, map { my ($id, $fields, $names) = @$_; join '|', $key, $id, map { $fields->{$_} } @$names } $redis->entries($key);
    }
    $redis->cmd('SELECT', 0);
    @entries = grep { my (undef, $id) = split /\|/, $_; (split /-/, $id)[0] <= $upto } @entries if defined $upto;
    return [ sort @entries ];
}

# the event types, in order of positions
sub types_in {
    my ($database) = @_;
    $late->cmd('SELECT', $database);
    my @found = map { [ split(/-/, $_->[0]), $_->[1]{event_type} ] } map { $late->entries($_) } $late->streams;
    $late->cmd('SELECT', 0);
    return join ' ', map { $_->[2] } sort { $a->[0] <=> $b->[0] || $a->[1] <=> $b->[1] } @found;
}

sub emit { my (@types) = @_; return join ' ', map { "SELECT outbox.emit('$_', '{}');" } @types }
sub flushed { my ($sink) = @_; ok(flush($node, 'postgres', '30 s', $sink), "sink $sink is flushed"); return }
sub verified { my ($sink) = @_; is(one("SELECT count(*) FROM outbox.verify('$sink')"), 0, "verify finds $sink in order"); return }

# while events are emitted

my $load = start_load($node, clients => 3, rate => 200);
poll_until(sub { $first->published > 300 }, 'there is a history');
my $history = $first->published;
create('history', 'beginning');
$late->cmd('SELECT', 1);
poll_until(sub { $late->published > $history + 100 }, 'the late sink has the history, and is live');
kill_worker($node, 'postgres', 'KILL', 2);
$load->stop;
wait_settled($node);
flushed('history');
$late->cmd('SELECT', 1);
ok_streams($node, $late, 'a late sink has everything once and in order');
# up to the first tick that only one of them has: from there on each has its own, some of which may be the same by chance
my $common = one(q{WITH k AS (SELECT ms, snapshot::text FROM outbox.tick WHERE sink_id = 1),
                        h AS (SELECT ms, snapshot::text FROM outbox.tick WHERE sink_id = 2)
    SELECT max(ms) FROM k WHERE ms < (SELECT min(ms) FROM ((SELECT * FROM k EXCEPT SELECT * FROM h)
                                                          UNION ALL (SELECT * FROM h EXCEPT SELECT * FROM k)) x)});
cmp_ok(one("SELECT count(*) FROM outbox.tick WHERE sink_id = 2 AND ms <= $common"), '>', 5, 'its history came in many batches');
my $of_first = entries_in($first, 0, $common);
cmp_ok(scalar @$of_first, '>=', $history, 'of as many events');
is_deeply(entries_in($late, 1, $common), $of_first, 'and equals that of the first sink entry by entry, with its positions');
verified('history');
is(one(q{SELECT count(*) FROM outbox.sink_event a JOIN outbox.event d USING (event_id) WHERE a.sink = 'history' AND a.status <> d.status}), 0,
    'outbox.sink_event says of both that it is published');

# at a time, and at a position

emit_some($node, 3);
one(emit(map { "start.before.n$_" } 1 .. 5));
flushed('default');
my $time = poll_until(
    sub { one('SELECT clock_timestamp() WHERE (SELECT max(ms) FROM outbox.tick) < floor(extract(epoch FROM clock_timestamp()) * 1000)') },
    'the clock is behind the last batch');
one('BEGIN; ' . emit(map { "start.batch.n$_" } 1 .. 6) . ' COMMIT;');
flushed('default');
one(emit('start.after.all'));
flushed('default');
my $all = join ' ', (map { "start.batch.n$_" } 1 .. 6), 'start.after.all';
create('since', $time);
my $position = one(q{SELECT position FROM outbox.event WHERE event_type = 'start.batch.n4'});
like($position, qr/-3$/, 'six events are one batch');
create('middle', $position);
create('whole', one(q{SELECT position FROM outbox.event WHERE event_type = 'start.batch.n1'}));
flushed($_) for 'since', 'middle', 'whole';
is(types_in(2), $all, 'a sink that starts at a time gets what was committed since');
is(types_in(3), $all =~ s/.*n3 //r, 'one that starts in the middle of a batch gets the rest of it');
is(types_in(4), $all, 'one that starts with a batch gets it');
is_deeply([ grep { /start\.batch\.n[4-6]/ } @{ entries_in($late, 3) } ], [ grep { /start\.batch\.n[4-6]/ } @{ entries_in($first, 0) } ],
    'at the same positions');
is(one(q{SELECT string_agg(DISTINCT status, ' ') FROM outbox.sink_event WHERE sink = 'middle' AND event_type ~ '^start.batch.n[1-3]'}), 'filtered',
    'outbox.sink_event says that what is before is not for it');
is(one(q{SELECT lag_events FROM outbox.stat_sink WHERE sink = 'middle'}), 0, 'nor does its lag count that');

# now

my $open = $node->background_psql('postgres', on_error_stop => 0);
$open->query_safe('BEGIN; ' . emit('start.open.before'));
# (a transaction that is in the past of others does not see itself as running)
my $own = $node->background_psql('postgres', on_error_stop => 0);
$own->query_safe('BEGIN; ' . emit('start.own.before'));
one(emit('start.before.now'));
$own->query_safe("SELECT outbox.create_sink('live', '" . $late->url(++$databases) . "'); " . emit('start.own.behind') . ' COMMIT;');
$own->quit;
$open->query_safe('COMMIT');
$open->quit;
one(emit('start.after.now'));
flushed('live');
is(join(' ', sort split / /, types_in(5)), 'start.after.now start.open.before start.own.before start.own.behind',
    'a sink that starts now gets what is committed from then on, also by transactions that had begun');
verified($_) for qw(since middle whole live);

# Redis loses it all: each comes back as far as its start

flushed($_) for qw(history since middle whole live);
my %before = map { $_ => entries_in($late, $_) } 1 .. 5;
$late->cmd('FLUSHALL');
one(emit('start.after.loss'));
for my $sink (qw(history since middle whole live)) {
    poll_until(sub { my $state = stat_sink($node, 'postgres', $sink)->{state}; $state eq 'streaming' }, "$sink is healed");
    flushed($sink);
}
for my $database (1 .. 5) {
    is_deeply([ grep { !/start\.after\.loss/ } @{ entries_in($late, $database) } ], $before{$database}, "the streams of sink $database are as before");
    like(types_in($database), qr/ start\.after\.loss$/, 'and go on');
}
verified($_) for qw(history since middle whole live);

# into streams that somebody has trimmed: a sink that never sent anything does not take what is gone for its own

one(q{SELECT outbox.drop_sink('whole')});
$late->cmd('SELECT', 4);
$late->cmd('XTRIM', 'outbox:{start}', 'MAXLEN', 0);
$late->cmd('SELECT', 0);
$databases = 3;
create('again', $time);
flushed('again');
is(join(' ', sort split / /, types_in(4)), join(' ', sort split / /, "$all start.before.now " . types_in(5)), 'all of it is there again');
verified('again');

done_testing();
