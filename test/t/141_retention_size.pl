# outbox.retention_size: the oldest events go before their time when all of them take more, but none that somebody still needs; and
# whoever that is, is named.
use strict;
use warnings;
use OutboxTest;
use OutboxTest::Session;
use Test::More;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.retention = '7d'\noutbox.poll_interval = '100ms'\nautovacuum = off\n");

sub one { my ($sql) = @_; return $node->safe_psql('postgres', $sql) }
sub bytes { return one(q{SELECT sum(bytes) FROM outbox.stat_retention WHERE state <> 'empty'}) }
sub held { return one(q{SELECT held_back_by FROM outbox.stat_retention WHERE state = 'held back'}) }
sub generation { return one('SELECT COALESCE(max(generation), 0) FROM outbox.ring') }
sub oldest { return one(q{SELECT COALESCE(min(seq), 0) FROM outbox.stored_event}) }

# about 300 kB, which are published then
my (@all, $bound);
sub add {
    push @all, split /\n/,
        one(q{SELECT outbox.emit('bulk.load', jsonb_build_object('fill', repeat(md5(i::text), 40))) FROM generate_series(1, 200) i});
    flush($node);
    return;
}

# a little more than the share of a partition, and the ring has the time to turn
sub fill {
    add();
    poll_until(sub { one("SELECT bytes < $bound / 6 OR EXISTS (SELECT FROM outbox.stat_retention WHERE state = 'held back')
        FROM outbox.stat_retention WHERE state = 'current'") eq 't' }, 'the ring has turned, or cannot') if $bound;
    return;
}

# no bound

fill() for 1 .. 4;
is(generation(), 0, 'by its age alone the ring does not turn');
my $limit = 1200 * 1024;
$node->append_conf('postgresql.conf', "outbox.retention_size = '1200kB'");
$node->reload;
$bound = $limit;

# a bound

poll_until(sub { generation() >= 1 }, 'with a bound it turns when a partition has its share');
my $first = oldest();
poll_until(sub { fill(); oldest() > $first }, 'the oldest events are dropped');
ok(log_has($node, qr/LOG:  events beyond outbox\.retention_size were dropped from partition 0/), 'as the log says');
poll_until(sub { fill(); generation() >= 8 }, 'the ring turns on');
# partitions are dropped whole, so a large one may be over it until enough is newer
poll_until(sub { fill(); bytes() <= $limit * 1.2 }, 'what is stored stays about the bound');
cmp_ok(bytes(), '>', $limit / 2, 'and half of it is always there');
is(one('SELECT count(*) FROM outbox.verify()'), 0, 'every event is where it was');

# a transaction needs the oldest partition

my $session = OutboxTest::Session->new($node);
my $generation = generation();
$session->say(q{BEGIN; SELECT outbox.emit('late.comer', '{}', event_id => '00000000-0000-0000-0000-0000000000aa');});
my $pid = one(q{SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'});
poll_until(sub { fill(); held() =~ /^transaction \d+ of process $pid uses partition \d since \d/ }, 'an open transaction is named, with its process');
is(one(q{SELECT r.held_back_since = a.xact_start FROM outbox.stat_retention r, pg_stat_activity a WHERE r.state = 'held back' AND a.pid = } . $pid), 't',
    'and since when');
like(stat_sink($node)->{retention_held_back_by}, qr/process $pid/, 'stat_sink says so, too');
my ($seconds) = one('SELECT outbox.metrics()') =~ /^outbox_retention_held_back_seconds\{.*\} (\S+)$/m;
cmp_ok($seconds, '>', 0, 'and so do the metrics');
my ($metric) = one('SELECT outbox.metrics()') =~ /^outbox_retention_limit_bytes\{.*\} (\S+)$/m;
is($metric, $limit, 'which know the bound');
$session->say("PREPARE TRANSACTION 'the late one';");
poll_until(sub { held() =~ /^prepared transaction "the late one" \(\d+\) uses partition \d since \d/ }, 'a prepared transaction is named by its gid');
is(one(q{SELECT r.held_back_since = p.prepared FROM outbox.stat_retention r, pg_prepared_xacts p WHERE r.state = 'held back'}), 't', 'and since when');
poll_until(sub { fill(); generation() >= $generation + 7 }, 'a ring that is full stays where it is');
cmp_ok(bytes(), '>', $limit, 'over its bound');
fill() for 1 .. 2;
$session->say("COMMIT PREPARED 'the late one';");
ok(flush($node), 'its event is published');
my %there = map { $_->[1]{event_id} => 1 } map { $redis->entries($_) } $redis->streams;
ok($there{'00000000-0000-0000-0000-0000000000aa'}, 'it was not dropped');
# its partition is apart once half of the bound came after its batch
$generation = generation();
poll_until(sub { add(); generation() > $generation }, 'then it is dropped, and the ring turns on');
poll_until(sub { fill(); bytes() <= $limit * 1.2 }, 'and so is the rest');

# an old snapshot

$session->say('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM truth;');
poll_until(sub { fill(); held() =~ /^process $pid uses a snapshot that is older than the confirmation since \d/ }, 'who has an old snapshot is named');
$session->say('COMMIT;');

# a sink

one(q{SELECT outbox.pause()});
# (stat_sink says so at once, the worker when it knows)
poll_until(sub { one('SELECT state FROM outbox.worker_state() WHERE sink_id = 1') eq 'paused' }, 'the sink is paused');
one(q{SELECT outbox.create_sink('other', '} . $redis->url(1) . q{')});
my @unsent;
my $emit = q{SELECT outbox.emit('bulk.load', jsonb_build_object('fill', repeat(md5(i::text), 40))) FROM generate_series(1, 200) i};
poll_until(sub { push @unsent, split /\n/, one($emit); held() =~ /^sink "default" has not confirmed its events since \d/ }, 'a sink that is paused is named');
is(one('SELECT count(*) FROM outbox.stored_event WHERE event_id IN (' . join(',', map { "'$_'" } @unsent) . ')'), scalar @unsent, 'nothing of it is dropped');
cmp_ok(bytes(), '>', $limit, 'though all is over the bound');
one(q{SELECT outbox.resume()});
ok(flush($node), 'when it works again');
%there = map { $_->[1]{event_id} => 1 } map { $redis->entries($_) } $redis->streams;
is(scalar(grep { !$there{$_} } @all, @unsent), 0, 'all that was ever emitted is published');

done_testing();
