# outbox.replay(): into other streams it makes what the original is, entry by entry; into the sink's own it appends the events once
# more, in order. Whoever is killed meanwhile, nothing is missing and nothing is there twice.
use strict;
use warnings;
use Test::More;

use OutboxTest;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.response_timeout = '60s'\n");

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub verified { return one(q{SELECT COALESCE(string_agg(v::text, E'\n'), 'in order') FROM outbox.verify() v}) }

# Entries as text, in the order of their positions.
sub entries {
    my ($prefix, $with_ids) = @_;
    my @found;
    for my $key (map { s/ .*//sr } @{ $redis->cmd('KEYS', "$prefix:*") }) {
        next if $key =~ /^outbox:(?:sink|replay):/;
        (my $name = $key) =~ s/^\Q$prefix\E://;
        push @found, map { [ $_->[0], "$name " . join '|', map { $_ // '' } @{ $_->[1] }{ sort keys %{ $_->[1] } } ] } $redis->entries($key);
    }
    my @sorted = sort { my @a = split /-/, $a->[0]; my @b = split /-/, $b->[0]; $a[0] <=> $b[0] || $a[1] <=> $b[1] } @found;
    return map { $with_ids // 1 ? "$_->[0] $_->[1]" : $_->[1] } @sorted;
}

sub state_of { my ($id) = @_; return one("SELECT state FROM outbox.stat_replay WHERE id = $id") }

sub wait_for {
    my ($id, $state) = @_;
    my $is = '';
    my $came = eval { poll_until(sub { ($is = state_of($id)) eq $state }, "replay $id is $state") };
    return ok($came, "replay $id is $state") || diag(one("SELECT r FROM outbox.stat_replay r WHERE id = $id"));
}

sub replayer { return one(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'outbox replayer'}) }

sub replay {
    my ($arguments, $state) = @_;
    my $id = one("SELECT outbox.replay($arguments)");
    wait_for($id, $state // 'done');
    return $id;
}

run_load($node, clients => 2, transactions => 40, large => 0);
wait_settled($node);
my ($half) = one('SELECT position FROM outbox.event ORDER BY seq OFFSET (SELECT count(*) / 2 FROM outbox.event) LIMIT 1');
my $time = one('SELECT clock_timestamp()');
run_load($node, clients => 2, transactions => 40, large => 0);
wait_settled($node);
my @original = entries('outbox');

# into other streams

my $id = replay(q{into_stream => 'copy:{%t}'});
is_deeply([ entries('copy') ], \@original, 'a replay into new streams equals the original, entry by entry');
is(one("SELECT done, total, done = (SELECT count(*) FROM outbox.event), position = until, last_error FROM outbox.stat_replay WHERE id = $id"),
    scalar(@original) . '|' . scalar(@original) . '|t|t|', 'stat_replay has counted them');
replay(q{into_stream => 'copy:{%t}'});
is_deeply([ entries('copy') ], \@original, 'once more into the same adds nothing');

replay(qq{into_stream => 'half:{%t}', since => '$half'});
my @behind = grep { my @at = split /[- ]/, $_; my @from = split /-/, $half; ($at[0] <=> $from[0] || $at[1] <=> $from[1]) >= 0 } @original;
is_deeply([ entries('half') ], \@behind, 'it begins at a position');
replay(qq{since => '$time'::timestamptz, into_stream => 'late:{%t}'});
my $from_ms = one("SELECT ceil(extract(epoch FROM '$time'::timestamptz) * 1000)");
is_deeply([ entries('late') ], [ grep { (split /-/)[0] >= $from_ms } @original ], 'or at a time');
replay(qq{until => '$time', into_stream => 'early:{%t}', topics => '{wallet,billing}'});
is_deeply([ entries('early') ], [ grep { (split /-/)[0] <= $from_ms && / \{(?:wallet|billing)\} / } @original ], 'and takes what it is to take');
ok(scalar(entries('early')) > 0 && scalar(entries('late')) > 0, 'which is something');

# what cannot be

one("SELECT outbox.create_sink('other', '" . $redis->url . q{', stream => 'other:{%t}', topics => '{none}')});
for my $case (
    [ q{sink => 'no'},                                 qr/sink "no" does not exist/ ],
    [ q{since => 'soon'},                              qr/since is neither a time nor a position: "soon"/ ],
    [ q{since => '2-0', until => '1-0'},               qr/since must not be later than until/ ],
    [ q{rate => 0},                                    qr/rate must be at least 1/ ],
    [ q{into_stream => 'x'},                           qr/stream/ ],
    [ q{topics => '{a b}'},                            qr/topics/ ],
    [ q{into_stream => 'other:{%t}'},                  qr/the replay could have the same streams as sink "other"/ ]) {
    my ($status, undef, $error) = $node->psql('postgres', "SELECT outbox.replay($case->[0])");
    ok($status != 0 && $error =~ $case->[1], "replay($case->[0]) is refused") or diag($error);
}
one('CREATE ROLE reader LOGIN; GRANT outbox_reader TO reader');
my ($status, undef, $error) = $node->psql('postgres', 'SET ROLE reader; SELECT count(*) FROM outbox.stat_replay; SELECT outbox.replay()');
like($error, qr/permission denied for function replay/, 'a reader sees replays and starts none');
$redis->cmd('XADD', 'taken:{wallet}', '99999999999999-0', 'a', 'b');
$id = replay(q{into_stream => 'taken:{%t}', topics => '{wallet}'}, 'failed');
like(one("SELECT last_error FROM outbox.stat_replay WHERE id = $id"), qr/^stream "taken:\{wallet\}" has entries of others/, 'and says why');

# killed, again and again: into other streams, and at the ends of its own

# so slow that none is done before all of this has happened
my @ways = ([ q{into_stream => 'killed:{%t}', rate => 3}, 'killed' ], [ q{rate => 3}, undef ]);
for my $way (@ways) {
    my ($arguments, $prefix) = @$way;
    $id = one("SELECT outbox.replay($arguments)");
    my $done = sub { return one("SELECT done FROM outbox.stat_replay WHERE id = $id") };
    for my $kill ('the worker', 'the server', 'and gently') {
        my $before = $done->();
        poll_until(sub { $done->() > $before }, 'it goes on');
        if ($kill eq 'the worker') {
            my $pid = poll_until(sub { replayer() }, 'it has a worker');
            kill 'KILL', $pid;
            wait_recovered($node, $pid);
        } elsif ($kill eq 'the server') {
            crash($node);
            $node->start;
        } else {
            is(state_of($id), 'running', 'it is not done yet');
            one("UPDATE outbox.replay_task SET rate = NULL WHERE id = $id");    # the next worker shall not be slow
            poll_until(
                sub { one(q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'outbox replayer'}) > 0 },
                'it has a worker');
        }
    }
    wait_for($id, 'done');
    is($done->(), scalar(@original), 'it has counted each once');
    if ($prefix) {
        is_deeply([ entries($prefix) ], \@original, 'though worker and server are killed, nothing is missing or there twice');
    } else {
        ok(flush($node), 'all is published');
        my @now = entries('outbox');
        is_deeply([ @now[ 0 .. $#original ] ], \@original, 'what was there stays');
        is_deeply([ map { s/^\S+ //r } @now[ @original .. $#now ] ], [ map { s/^\S+ //r } @original ],
            'the same events follow in the same order, once, though worker and server are killed');
        is(verified(), 'in order', 'verify() finds it in order');
        is(one(q{SELECT count(*), count(*) FILTER (WHERE status = 'published') FROM outbox.event}), join('|', (2 * @original) x 2),
            'outbox.event has both');
    }
}

# Redis loses what was replayed, in the middle of it

$id = one(q{SELECT outbox.replay(into_stream => 'lost:{%t}', until => '} . (split / /, $original[-1])[0] . q{', rate => 20)});
poll_until(sub { one("SELECT done FROM outbox.stat_replay WHERE id = $id") > 5 }, 'it goes on');
$redis->kill9;
is(state_of($id), 'running', 'it is in the middle');
$redis->wipe->start;
wait_for($id, 'done');
is_deeply([ entries('lost') ], \@original, 'it begins again where Redis has lost data');

# cancelled, and slow

$id = one(q{SELECT outbox.replay(into_stream => 'slow:{%t}', rate => 2)});
poll_until(sub { one("SELECT done FROM outbox.stat_replay WHERE id = $id") > 2 }, 'it has begun');
my $waiting = one(q{SELECT outbox.replay(into_stream => 'next:{%t}', until => '} . (split / /, $original[0])[0] . q{')});
is(one("SELECT outbox.cancel_replay($id)"), 't', 'it is cancelled');
is(one("SELECT outbox.cancel_replay($id)"), 'f', 'once');
is(state_of($id), 'cancelled', 'stat_replay says so');
wait_for($waiting, 'done');
cmp_ok(scalar(entries('slow')), '<', @original / 4, 'it has not done all');
is(scalar(entries('next')), 1, 'the next one, which had to wait, is done');
my $rate = one("SELECT done / extract(epoch FROM ended_at - started_at + interval '0.3 s') FROM outbox.stat_replay WHERE id = $id");
cmp_ok($rate, '<', 3, 'it was no faster than it was asked to be');

# what it still needs is not dropped

# it has begun before anything is old, and is not done before the test is
$id = one(q{SELECT outbox.replay(into_stream => 'kept:{%t}', rate => 1)});
wait_for($id, 'running');
my $stored = one('SELECT min(seq) FROM outbox.stored_event');
$node->safe_psql('postgres', "ALTER SYSTEM SET outbox.retention = '2s'");
$node->reload;
poll_until(sub { emit_some($node, 1); (stat_sink($node)->{retention_held_back_by} // '') =~ /^replay $id has not read its events yet/ },
    'it holds retention back');
is(one('SELECT min(seq) FROM outbox.stored_event'), $stored, 'nothing is dropped meanwhile');
is(state_of($id), 'running', 'and it goes on');
one("SELECT outbox.cancel_replay($id)");
poll_until(sub { emit_some($node, 1); one('SELECT min(seq) FROM outbox.stored_event') > $stored }, 'without it retention goes on');
$id = replay(q{into_stream => 'rest:{%t}'});
like(one("SELECT not_retained_upto FROM outbox.stat_replay WHERE id = $id"), qr/^20/, 'one that would have begun earlier tells so');
$id = replay(q{into_stream => 'gone:{%t}', until => '} . (split / /, $original[0])[0] . q{'});
is(one("SELECT done || '|' || (not_retained_upto IS NOT NULL) FROM outbox.stat_replay WHERE id = $id"), '0|true', 'and so does one of what is gone altogether');

done_testing();
