# The confirm level of a sink: what a replica, or Redis' disk, does not have yet does not count as published, whatever happens to
# the replica, the worker or the primary meanwhile.
use strict;
use warnings;
use OutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = OutboxTest::Redis->new(name => 'primary', conf => ['repl-diskless-sync-delay 0']);
my $line = OutboxTest::Proxy->new(to => '127.0.0.1:' . $primary->port, tcp => 1);
my $replica = OutboxTest::Redis->new(name => 'replica',
    conf => [ 'repl-diskless-sync-delay 0', 'replicaof 127.0.0.1 ' . $line->{port} ]);
poll_until(sub { $replica->cmd(qw(INFO replication)) =~ /^master_link_status:up/m }, 'there is a replica');
my $node = new_node(redis => $primary, conf => "outbox.response_timeout = '500ms'\noutbox.lease_timeout = '1s'\noutbox.max_attempts = 100000\n");

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub published { return one(q{SELECT count(*) FROM outbox.event WHERE status = 'published'}) }
sub state { return stat_sink($node)->{state} }
sub retries { $node->append_conf('postgresql.conf', "outbox.retry_min = '$_[0]'\noutbox.retry_max = '$_[0]'"); $node->reload; return }
sub xadds { return $_[0]->cmd(qw(INFO commandstats)) =~ /^cmdstat_xadd:calls=(\d+)/m ? $1 : 0 }

one(q{SELECT outbox.alter_sink('default', confirm => 'replicas(1)')});
is(one('SELECT confirm FROM outbox.sink'), 'replicas(1)', 'the sink shows its confirm level');
emit_some($node, 10);
ok(flush($node), 'events are published while the replica answers');
is($replica->published, 10, 'and it has them');
my $position = stat_sink($node)->{position};
my $activity = sub { return one(q{SELECT query || ', ' || wait_event FROM pg_stat_activity WHERE backend_type = 'outbox worker'}) };
my $at_rest = $node->pg_version >= 17 ? 'OutboxWorkerMain' : 'Extension';
poll_until(sub { $activity->() eq "sink default streaming at $position, $at_rest" }, 'pg_stat_activity shows what the worker does');

# the replica hangs

$replica->sigstop;
emit_some($node, 5);
poll_until(sub { $primary->published == 15 }, 'the primary has more');
ok(!flush($node, 'postgres', '100 ms'), 'which is not published');
poll_until(sub { state() eq 'unconfirmed' }, 'after a while the sink says why');
is(stat_sink($node)->{last_error}, '0 of 1 replicas have the entries', 'last_error tells how many have it');
# which is written when the state has been shown
my $advice = qr/WARNING:  entries of sink "default" are not confirmed by Redis.*\n.*DETAIL.*\n.*HINT:  Check Redis' replicas.*confirm => 'memory'/;
ok(poll_until(sub { log_has($node, $advice) }, 'the log tells'), 'and the log what to do');
like($activity->(), qr/^sink default unconfirmed at $position, /, 'pg_stat_activity tells');
is(published(), 10, 'outbox.event goes by what is confirmed');
is(stat_sink($node)->{position}, $position, 'and so does the position');
emit_some($node, 1000);
ok(!flush($node, 'postgres', '500 ms'), 'flush() does, too');
is($primary->published, 15, 'and nothing more is sent');
$replica->sigcont;
poll_until(sub { flush($node) }, 'with the replica back it goes on');
is(xadds($primary), 1015, 'without anything being sent twice');
is($replica->published, 1015, 'the replica has it all');
like(state(), qr/streaming|idle/, 'the sink is in order');
ok(log_has($node, qr/LOG:  the entries of sink "default" are confirmed again/), 'as the log says');

# the worker crashes while it waits

$replica->sigstop;
emit_some($node, 5);
poll_until(sub { $primary->published == 1020 }, 'there is more on the primary');
poll_until(sub { state() eq 'unconfirmed' }, 'which is not confirmed');
is(published(), 1015, 'and does not count');
wait_recovered($node, kill_worker($node));
wait_for_worker($node);
poll_until(sub { state() eq 'unconfirmed' }, 'the next worker waits, too');
is(published(), 1015, 'though it finds its marker ahead');
is(one(q{SELECT ms || '-' || n FROM outbox.checkpoint WHERE sink_id = 1}), one(q{SELECT position FROM outbox.event WHERE status = 'published'
    ORDER BY split_part(position, '-', 1)::bigint DESC, split_part(position, '-', 2)::bigint DESC LIMIT 1}), 'nor is more written down');
$replica->sigcont;
ok(flush($node), 'it is published in the end');
is($primary->published, 1020, 'once');

# what a held stream got in the end counts when it is confirmed

one(q{SELECT outbox.emit('sore.point', '{}')});
ok(flush($node), 'a stream begins');
retries('1s');
$primary->spoil('outbox:{sore}');
one(q{SELECT outbox.emit('sore.again', '{}')});
poll_until(sub { one(q{SELECT status FROM outbox.event WHERE event_type = 'sore.again'}) eq 'failed' }, 'a stream is held');
$replica->sigstop;
$primary->mend('outbox:{sore}');
# unless another attempt came before: then that has to be confirmed first
poll_until(sub { $primary->published == 1022 || state() eq 'unconfirmed' }, 'its event is sent in the end');
is(one(q{SELECT status FROM outbox.event WHERE event_type = 'sore.again'}), 'failed', 'which does not count');
is(stat_sink($node)->{held_streams}, 1, 'before it is confirmed');
$replica->sigcont;
poll_until(sub { one(q{SELECT status FROM outbox.event WHERE event_type = 'sore.again'}) eq 'published' }, 'and then it does');
retries('50ms');

# the user may not ask

$primary->cmd(qw(ACL SETUSER default -wait));
$primary->cmd(qw(CLIENT KILL TYPE normal));
poll_until(sub { state() eq 'backing off' && stat_sink($node)->{last_error} =~ /NOPERM.*wait/i }, 'without the right to WAIT nothing is sent');
$primary->cmd(qw(ACL SETUSER default +wait));
poll_until(sub { flush($node) }, 'with it, it goes on');

# the primary dies with what the replica does not have

my $load = start_load($node, clients => 2, rate => 100, weights => { commit => 60, multi => 15, savepoint => 5, rollback => 10, async => 10, prepared => 0 });
poll_until(sub { $replica->published > 1100 }, 'events flow');
$load->stop;
wait_settled($node);
$line->blackhole;
emit_some($node, 3);
ok(!flush($node, 'postgres', '300 ms'), 'the replica gets no more');
poll_until(sub { $primary->published > $replica->published }, 'and falls behind');
my @told = split /\n/, one(q{SELECT event_id FROM outbox.event WHERE status = 'published'});
my $more = $primary->published - $replica->published;
cmp_ok($more, '>', 0, 'the primary has what the replica has not');
$primary->kill9;
$line->refuse;
$replica->cmd(qw(REPLICAOF NO ONE));
my %there = map { map { $_->[1]{event_id} => 1 } $replica->entries($_) } $replica->streams;
is(scalar(grep { !$there{$_} } @told), 0, 'nothing that counted as published is lost with the primary');
cmp_ok(scalar @told, '>', 1000, 'which is a lot');
$node->append_conf('postgresql.conf', "outbox.redis_url = '" . $replica->url . "'");
$node->reload;
poll_until(sub { state() eq 'unconfirmed' }, 'the promoted replica has none of its own');
one(q{SELECT outbox.alter_sink('default', confirm => 'memory')});
poll_until(sub { flush($node) }, 'with less asked for, it goes on');
ok_streams($node, $replica, 'all that was committed is there, once and in order',
    ignore => sub { my ($key) = @_; return $key eq 'outbox:{sore}' || $key eq 'outbox:{test}' });
is(one(q{SELECT count(*) FROM outbox.verify()}), 0, 'and what the failover lost is there again');
is(one('SELECT count(*) FROM truth WHERE event_id NOT IN (SELECT event_id FROM outbox.event WHERE status = \'published\')'), 0, 'all of it');

# Redis' own disk

my ($major, $minor) = $replica->cmd(qw(INFO server)) =~ /^redis_version:(\d+)\.(\d+)/m;
one("SELECT outbox.create_sink('disk', '" . $replica->url(1) . "', confirm => 'fsync')");
my $why = $major * 100 + $minor >= 702 ? qr/WAITAOF.*appendonly is disabled/ : qr/WAITAOF.*unknown command/;
poll_until(sub { my $sink = stat_sink($node, 'postgres', 'disk'); $sink->{state} eq 'backing off' && $sink->{last_error} =~ $why },
    'a Redis that cannot say what is on its disk is refused');
ok(log_has($node, qr/could not work with Redis at .* for sink "disk".*WAITAOF.*\n.*HINT:  .*confirm => 'memory'/), 'with a hint');
one(q{SELECT outbox.emit('disk.full', '{}')});
ok(!flush($node, 'postgres', '200 ms', 'disk'), 'nothing is published there');
$replica->cmd('SELECT', 1);
is(join(' ', grep { /disk/ } $replica->streams), '', 'nor sent');
$replica->cmd('SELECT', 0);

SKIP: {
    skip 'this Redis is older than 7.2 and has no WAITAOF', 5 if $major * 100 + $minor < 702;
    my $file = OutboxTest::Redis->new(name => 'file', aof => 'everysec');
    one("SELECT outbox.alter_sink('disk', '" . $file->url . "')");
    poll_until(sub { flush($node, 'postgres', '5 s', 'disk') }, 'with an append-only file it works');
    ok(flush($node), 'as the other sink does');
    is(published(), one(q{SELECT count(*) FROM outbox.sink_event WHERE status IN ('published', 'filtered') AND sink = 'disk'}), 'all is published');
    $file->cmd(qw(CONFIG SET appendfsync no));
    one(q{SELECT outbox.emit('disk.full', '{}')});
    poll_until(sub { stat_sink($node, 'postgres', 'disk')->{state} eq 'unconfirmed' }, 'one that does not write is noticed');
    is(stat_sink($node, 'postgres', 'disk')->{last_error}, 'Redis has not written the entries to its disk', 'and told');
    my $had = $file->published;
    $file->cmd(qw(CONFIG SET appendfsync always));
    one(q{SELECT outbox.emit('disk.full', '{}')});
    ok(flush($node, 'postgres', '30 s', 'disk'), 'when it writes again, it is published');
    $file->kill9;
    $file->start;
    is($file->published, $had + 1, 'and is there after a crash');
}

done_testing();
