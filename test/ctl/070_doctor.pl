# outboxctl doctor: each thing that can be wrong is made wrong, and is found, with what to change; nothing else is.
use strict;
use warnings;
use JSON::PP ();
use Test::More;

use OutboxTest;
use OutboxTest::Ctl;

my $redis = OutboxTest::Redis->new(aof => 'everysec', conf => ['repl-diskless-sync-delay 0']);
my $node = new_node(redis => $redis, conf => "outbox.max_attempts = 2\n");
serve($node, $redis);

# { check => [ level, what, change ] } of what is not ok; dies if the status is not that of the worst
sub findings {
    my (@words) = @_;
    my $run = ctl('doctor', '--json', @words);
    my $doc = JSON::PP->new->utf8->decode($run->{out});
    my %status = (ok => 0, warning => 4, error => 1);
    die "status $run->{status} of $doc->{worst}" if $run->{status} != $status{ $doc->{worst} };
    my %found;
    for my $one (@{ $doc->{findings} }) {
        die "$one->{check} is $one->{level} without what to change" if $one->{level} ne 'ok' && !$one->{change};
        $found{ $one->{check} } = [ @$one{qw(level what change)} ] if $one->{level} ne 'ok';
    }
    return \%found;
}

# Only this is found.
sub finds {
    my ($check, $level, $regex, @words) = @_;
    my $found = findings(@words);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is(join(' ', sort keys %$found), $check, "only $check is found") or return diag(explain($found));
    is($found->{$check}[0], $level, "the level is $level");
    return like("$found->{$check}[1] -> $found->{$check}[2]", $regex, 'with what to change');
}

sub set {
    my ($name, $value) = @_;
    $node->safe_psql('postgres', "ALTER SYSTEM SET $name = '$value'");
    $node->reload;
    return poll_until(sub { $node->safe_psql('postgres', "SHOW $name") eq $value }, "$name is $value");
}

# all is well

poll_until(sub { stat_sink($node)->{state} eq 'idle' }, 'the worker is there');
is_deeply(findings(), {}, 'a fresh server has nothing to be changed');
emit_some($node, 20);
ok(flush($node), 'there are events');
# the clocks can be read only as exactly as the machine lets three questions be asked
my $run;
poll_until(sub { $run = ctl('doctor'); $run->{out} =~ /the clock of Redis is 0\.0/ }, 'the clocks were read without a rest in between');
is($run->{status}, 0, 'nor one that works');
like($run->{out}, qr/^ok +PostgreSQL \d+\.\d+.*^ok +Redis \d+\.\d+.*^ok +this is the Redis that sink "default" appends to.*^0 errors, 0 warnings, 0 unknown, \d+ ok\n\z/ms, 'which is said');
like($run->{out}, qr/^ok +the clock of Redis is 0\.0\d\d s (behind|ahead of) that of PostgreSQL/m, 'the clocks of one machine agree');
unlike($run->{out}, qr/\e/, 'without colours');

# Redis

$redis->cmd('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-lru');
finds('eviction', 'error', qr/allkeys-lru: Redis may evict streams -> CONFIG SET maxmemory-policy noeviction/);
$redis->cmd('CONFIG', 'SET', 'maxmemory-policy', 'volatile-lru');
finds('eviction', 'warning', qr/volatile-lru.*idempotency marks -> /);
$redis->cmd('CONFIG', 'SET', 'maxmemory-policy', 'noeviction');
$redis->cmd('CONFIG', 'SET', 'appendonly', 'no');
finds('persistence', 'warning', qr/no append-only file.* -> CONFIG SET appendonly yes/);
$redis->cmd('CONFIG', 'SET', 'appendonly', 'yes');
poll_until(sub { $redis->cmd('INFO', 'persistence') =~ /aof_rewrite_in_progress:0\r\naof_rewrite_scheduled:0/ }, 'the file is written');
my %memory = map { split /:/, $_, 2 } grep { /^used_memory:/ } split /\r\n/, $redis->cmd('INFO', 'memory');
$redis->cmd('CONFIG', 'SET', 'maxmemory', int($memory{used_memory} * 1.05));
finds('memory', 'warning', qr/ of maxmemory .* -> Trim/);
$redis->cmd('CONFIG', 'SET', 'maxmemory', 0);
poll_until(sub { !findings()->{persistence} }, 'the append-only file is there again');

$node->safe_psql('postgres', "BEGIN; SELECT outbox.create_sink('new', '" . $redis->url(1) . "'); SELECT outbox.pause('new'); COMMIT");
ok(!findings('--sink', 'new')->{marker}, 'a sink that has not begun has no marker yet, and that is no error');
$node->safe_psql('postgres', q{SELECT outbox.drop_sink('new')});

my $other = OutboxTest::Redis->new(aof => 'everysec');
finds('marker', 'error', qr/has no marker of sink "default": it is another one.* -> .*it came from --redis/, '--redis', $other->url);
$other->cmd('REPLICAOF', '127.0.0.1', $redis->port);
poll_until(sub { $other->cmd('INFO', 'replication') =~ /master_link_status:up/ }, 'it is a replica');
finds('redis_role', 'error', qr/is a replica.* -> .*primary/, '--redis', $other->url);
$other->kill9;
finds('redis', 'error', qr/could not connect to Redis.* -> .*--redis/, '--redis', $other->url);

# groups

$redis->cmd('XGROUP', 'CREATE', 'outbox:{wallet}', 'nobody', 0);
finds('group_idle', 'warning', qr/group "nobody" of outbox:\{wallet\} has entries to handle and no consumer -> /);
$redis->cmd('XGROUP', 'CREATECONSUMER', 'outbox:{wallet}', 'nobody', 'me');
$redis->cmd('XADD', 'outbox:{wallet}:dlq:nobody', '*', 'outbox_position', '1-1');
finds('group_dead_letters', 'warning', qr/has 1 dead letter -> .*outboxctl dlq ls --topic wallet --group nobody/);
$redis->cmd('DEL', 'outbox:{wallet}:dlq:nobody');
$redis->cmd('XGROUP', 'DESTROY', 'outbox:{wallet}', 'nobody');

# PostgreSQL

set('fsync', 'off');
finds('fsync', 'error', qr/fsync is off.* -> Set fsync = on/);
set('fsync', 'on');
set('outbox.enabled', 'off');
poll_until(sub { stat_sink($node)->{state} eq 'disabled' }, 'the sink is disabled');
my $found = findings();
is(join(' ', sort keys %$found), 'enabled sink', 'the sink is off');
set('outbox.enabled', 'on');
$node->safe_psql('postgres', 'SELECT outbox.pause()');
finds('sink', 'warning', qr/is paused, 0 events behind -> SELECT outbox\.resume/);
$node->safe_psql('postgres', 'SELECT outbox.resume()');
poll_until(sub { stat_sink($node)->{state} eq 'streaming' }, 'it works');
$redis->cmd('SET', 'outbox:{broken}', 'x');
$node->safe_psql('postgres', q{SELECT outbox.emit('broken.thing', '{}')});
poll_until(sub { stat_sink($node)->{dead_letters} == 1 }, 'an event is dead');
poll_until(sub { stat_sink($node)->{held_streams} == 0 }, 'its stream is free');
finds('dead_letters', 'warning', qr/sink "default" has 1 dead letter -> .*outboxctl dlq ls/);
$node->safe_psql('postgres', 'DELETE FROM outbox.dead_letter');
$redis->cmd('DEL', 'outbox:{broken}');
is_deeply(findings(), {}, 'all is well again');

$redis->stop(save => 1);
# not the lost connection any more, but that there is none to be had
poll_until(sub { my $sink = stat_sink($node); $sink->{state} eq 'backing off' && $sink->{last_error} =~ /No such file|refused/i }, 'Redis is gone');
$found = findings();
is(join(' ', sort keys %$found), 'redis sink', 'Redis and the sink are found');
like($found->{sink}[1], qr/is backing off, 0 events behind: \Q${\(stat_sink($node)->{last_error})}\E$/, 'with the worker\'s own words');
$redis->start;
poll_until(sub { stat_sink($node)->{state} eq 'streaming' }, 'it works');

# who asks

$node->safe_psql('postgres', 'CREATE ROLE somebody LOGIN');
$found = findings('-d', 'user=somebody dbname=postgres', '--redis', $redis->url);
is($found->{privileges}[0], 'error', 'without a right that is the finding');
like($found->{privileges}[2], qr/GRANT outbox_reader TO "somebody"/, 'with what to grant');
$node->safe_psql('postgres', 'GRANT outbox_reader TO somebody');
$found = findings('-d', 'user=somebody dbname=postgres');
is(join(' ', map { "$_ $found->{$_}[0]" } sort keys %$found), 'privileges unknown workers unknown', 'what a reader cannot see is unknown, not wrong');
$found = findings('-d', 'template1', '--redis', $redis->url);
is($found->{extension}[0], 'error', 'no extension');
$found = findings('-d', 'nowhere');
is(join(' ', map { "$_ $found->{$_}[0]" } sort keys %$found), 'postgresql error redis unknown', 'no database, and no word of Redis');

# what is set at server start

$node->append_conf('postgresql.conf', "max_worker_processes = 3\nmax_logical_replication_workers = 0\nmax_parallel_workers = 0\n");
$node->restart;
poll_until(sub { stat_sink($node)->{state} eq 'streaming' }, 'it works');
# a moment after the start the launcher's scouts take one, too
poll_until(sub { $found = findings(); $found->{workers} && $found->{workers}[0] eq 'warning' }, 'no scout is there');
is(join(' ', sort keys %$found), 'workers', 'only workers is found');
like("$found->{workers}[1] -> $found->{workers}[2]", qr/2 of max_worker_processes \(3\) are in use: one is left -> Raise/, 'with what to change');
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$node->restart;
$found = findings();
is(join(' ', map { "$_ $found->{$_}[0]" } sort grep { $_ ne 'workers' } keys %$found), 'preloaded error sink error', 'a server without the library');
like($found->{preloaded}[2], qr/Add outbox to shared_preload_libraries and restart/, 'is told what to do');

done_testing();
