# outbox.stat_consumer: every figure is Redis' own, of groups that read, lag behind, fail and go. The rights that the README lists
# suffice for it, and without them events flow all the same.
use strict;
use warnings;
use Test::More;

use OutboxTest;

my $redis = OutboxTest::Redis->new;
my @rights = qw(select client|setname watch multi exec discard get set xadd xrange xinfo|stream);
my @looking = qw(xinfo|groups xpending xlen info);
$redis->cmd('ACL', 'SETUSER', 'outbox', 'on', '>pw', 'resetchannels', '~outbox:*', map { "+$_" } @rights, @looking);
my $node = new_node(redis => $redis, url => "unix://outbox:pw\@" . $redis->socket, conf => "outbox.consumer_interval = '200ms'\noutbox.response_timeout = '60s'\n");
my $room = 2000;

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub emit { my ($topic, $n) = @_; return one("SELECT count(outbox.emit('$topic.thing.happened', '{}')) FROM generate_series(1, $n)") }

# A row for each group, as the view has it but for the times, once the worker has looked at everything that happened before.
sub shown {
    my $now = one('SELECT clock_timestamp()');
    poll_until(
        sub { one("SELECT count(*) = 0 FROM outbox.stat_consumer WHERE refreshed_at <= '$now'") eq 't' && pass_after($now) },
        'the worker has looked at the groups');
    return [ map { [ split /\|/, $_, -1 ] } split /\n/,
        one('SELECT stream, consumer_group, lag, pending, consumers, dead_letters FROM outbox.stat_consumer ORDER BY 1, 2') ];
}

# There is a row that is newer for each group that Redis has, as far as there is room: the worker writes them one by one.
sub pass_after {
    my ($now) = @_;
    my $groups = 0;
    $groups += @{ $redis->cmd('XINFO', 'GROUPS', $_) } for $redis->streams;
    return one("SELECT count(*) FROM outbox.stat_consumer WHERE refreshed_at > '$now'") == ($groups < $room ? $groups : $room);
}

# The same, asked of Redis.
sub true_groups {
    my @rows;
    for my $stream (grep { !/\}:/ } $redis->streams) {
        for my $fields (@{ $redis->cmd('XINFO', 'GROUPS', $stream) }) {
            my %group = @$fields;
            my $pending = $redis->cmd('XPENDING', $stream, $group{name});
            push @rows, [ $stream, $group{name}, $group{lag} // '', $pending->[0], $group{consumers}, $redis->cmd('XLEN', "$stream:dlq:$group{name}") ];
        }
    }
    return [ sort { "@$a[0, 1]" cmp "@$b[0, 1]" } @rows ];
}

sub same { my ($name) = @_; local $Test::Builder::Level = $Test::Builder::Level + 1; return is_deeply(shown(), true_groups(), $name) }

is(one('SELECT count(*) FROM outbox.stat_consumer'), 0, 'nobody reads yet');
emit('wallet', 30);
emit('shop', 5);
ok(flush($node), 'there are events');
$redis->cmd('XGROUP', 'CREATE', 'outbox:{wallet}', 'billing', '0');
$redis->cmd('XGROUP', 'CREATE', 'outbox:{wallet}', 'audit', '0');
$redis->cmd('XGROUP', 'CREATE', 'outbox:{shop}', 'billing', '$');
same('three groups that have read nothing');

my $read = $redis->cmd('XREADGROUP', 'GROUP', 'billing', 'one', 'COUNT', 10, 'STREAMS', 'outbox:{wallet}', '>')->[0][1];
my @ids = map { $_->[0] } @$read;
$redis->cmd('XREADGROUP', 'GROUP', 'billing', 'two', 'COUNT', 3, 'STREAMS', 'outbox:{wallet}', '>');
$redis->cmd('XACK', 'outbox:{wallet}', 'billing', @ids[ 0 .. 3 ]);
$redis->cmd('XADD', 'outbox:{wallet}:dlq:billing', '*', 'error', $_) for 1 .. 2;
$redis->cmd('XREADGROUP', 'GROUP', 'audit', 'one', 'COUNT', 100, 'STREAMS', 'outbox:{wallet}', '>');
my $groups = shown();
is_deeply($groups, true_groups(), 'groups with pending entries and dead letters');
is_deeply([ grep { $_->[1] eq 'billing' && $_->[0] =~ /wallet/ } @$groups ], [ [ 'outbox:{wallet}', 'billing', 17, 9, 2, 2 ] ], 'the very figures');

# the age of the oldest pending entry: of the lowest ID, whenever it was delivered
my ($lowest) = split /-/, $redis->cmd('XPENDING', 'outbox:{wallet}', 'billing')->[1];
is(one("SELECT round(extract(epoch FROM refreshed_at - oldest_pending_age) * 1000) FROM outbox.stat_consumer "
            . "WHERE consumer_group = 'billing' AND stream = 'outbox:{wallet}'"),
    $lowest, 'the age is that of the lowest pending ID');
is(one("SELECT oldest_pending_age IS NULL FROM outbox.stat_consumer WHERE stream = 'outbox:{shop}'"), 't', 'and null where nothing is pending');

# metrics() has the same figures
my %sample = one('SELECT outbox.metrics()') =~ /^(outbox_group_\w+\{[^\n]*\}) (\S+)$/mg;
my $label = 'database="postgres",sink="default",stream="outbox:{wallet}",group="billing"';
is($sample{"outbox_group_$_->[0]\{$label}"}, $_->[1], "$_->[0] is among the metrics")
    for [ lag => 17 ], [ pending => 9 ], [ consumers => 2 ], [ dead_letters => 2 ];
ok($sample{"outbox_group_oldest_pending_seconds{$label}"} > 0, 'the age too');

# a lag that Redis does not know: it is told where the ends of the stream tell it
$redis->cmd('XDEL', 'outbox:{wallet}', $ids[5]);
$redis->cmd('XGROUP', 'SETID', 'outbox:{wallet}', 'audit', '0');
my %lag = map { ($_->[1] => $_->[2]) } grep { $_->[0] =~ /wallet/ } @{ shown() };
my %true = map { my %group = @$_; ($group{name} => $group{lag}) } @{ $redis->cmd('XINFO', 'GROUPS', 'outbox:{wallet}') };
is($lag{billing}, $true{billing} // '', 'a lag is Redis\' own where it knows it, and null where nobody can tell');
is($lag{audit}, $true{audit} // $redis->cmd('XLEN', 'outbox:{wallet}'), 'a group that has to read all of it has all of it before it');

# an odd name, a group that goes, more groups than there is room for
$redis->cmd('XGROUP', 'CREATE', 'outbox:{shop}', "o\"d\\d\n", '0');
is((grep { $_->[1] eq 'o"d\\d\\x0a' } @{ shown() }), 1, 'a name is shown in printable characters');
like(one('SELECT outbox.metrics()'), qr/^outbox_group_lag\{.*,group="o\\"d\\\\d\\\\x0a"\} 5$/m, 'and quoted among the metrics');
$redis->cmd('XGROUP', 'DESTROY', 'outbox:{shop}', "o\"d\\d\n");
$redis->cmd('XGROUP', 'DESTROY', 'outbox:{wallet}', 'audit');
is_deeply([ map { "@$_[0, 1]" } @{ shown() } ], [ 'outbox:{shop} billing', 'outbox:{wallet} billing' ], 'a group that is gone is shown no longer');

# does Redis evict? the answer is looked up at each connect, and every minute
sub evicts {
    my ($wanted) = @_;
    wait_recovered($node, kill_worker($node));    # or it would be the answer of before
    poll_until(sub { (stat_sink($node)->{can_evict} // '') eq $wanted }, "can_evict is $wanted");
    return one("SELECT substring(outbox.metrics() FROM 'outbox_redis_eviction\\{[^\\n]*\\} ([0-9])')");
}
is(evicts('false'), 0, 'a Redis without a limit evicts nothing');
$redis->cmd('CONFIG', 'SET', 'maxmemory', '1gb');
$redis->cmd('CONFIG', 'SET', 'maxmemory-policy', 'volatile-lru');
is(evicts('false'), 0, 'nor one that evicts what has a time to live');
$redis->cmd('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-lru');
is(evicts('true'), 1, 'one that evicts any key does');

# without the rights events go on, and the log says what is missing
$redis->cmd('ACL', 'SETUSER', 'outbox', map { "-$_" } qw(xinfo xpending xlen info)), $redis->cmd('ACL', 'SETUSER', 'outbox', '+xinfo|stream');
my $offset = -s $node->logfile;
wait_recovered($node, kill_worker($node));
poll_until(sub { log_has($node, qr/WARNING:  could not look at the consumer groups of sink "default": NOPERM/, $offset) }, 'the log tells of it');
emit('wallet', 3);
ok(flush($node), 'events flow without the rights to look at groups');
is(stat_sink($node)->{errors}, 0, 'and that is no error');

# room
$node->append_conf('postgresql.conf', 'outbox.max_consumer_groups = 3');
$redis->cmd('ACL', 'SETUSER', 'outbox', map { "+$_" } @rights, @looking);
$redis->cmd('XGROUP', 'CREATE', 'outbox:{wallet}', "group$_", '0') for 1 .. 20;
$node->restart;
$room = 3;
poll_until(sub { one('SELECT count(*) FROM outbox.stat_consumer') == 3 }, 'three groups are shown');
shown();
is(one('SELECT count(*) FROM outbox.stat_consumer'), 3, 'and never more than there is room for');

done_testing();
