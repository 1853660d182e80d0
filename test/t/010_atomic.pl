# An event is published if and only if its transaction committed: with savepoints, with two-phase commit over a crash, and
# with commits that were acknowledged before they were durable.
use strict;
use warnings;
use OutboxTest;
use Test::More;
use Time::HiRes qw(time);

my $rounds = $ENV{ROUNDS} // 4;
my $redis = OutboxTest::Redis->new(aof => 'always');

# The log writer stays away, so that what is committed asynchronously is durable only when somebody else asks for it. A
# worker that did not would publish ghosts. The poll is rare, so that what arrives quickly did not wait for it.
my $node = new_node(redis => $redis, conf => <<'CONF');
wal_writer_delay = '10s'
outbox.poll_interval = '60s'
outbox.lease_timeout = '60s'
CONF

sub sql { return $node->safe_psql('postgres', $_[0]) }

sub prepared { return sql('SELECT count(*) FROM pg_prepared_xacts') }

# rollback

sql(<<'SQL');
BEGIN; SELECT load.step(1); COMMIT;
BEGIN; SELECT load.step(1); ROLLBACK;
BEGIN; SELECT load.step(1); SAVEPOINT a; SELECT load.step(2); ROLLBACK TO a; SELECT load.step(3); COMMIT;
BEGIN; SAVEPOINT a; SELECT load.step(4); SAVEPOINT b; SELECT load.step(5); RELEASE b; ROLLBACK TO a; SELECT load.step(6); COMMIT;
BEGIN; SAVEPOINT a; SELECT load.step(7); RELEASE a; COMMIT;
BEGIN; SAVEPOINT a; SELECT load.step(8); ROLLBACK TO a; COMMIT;
DO $$
BEGIN
    PERFORM load.step(9);
    BEGIN
        PERFORM load.step(10);
        PERFORM 1 / 0;
    EXCEPTION WHEN division_by_zero THEN
        PERFORM load.step(11);
    END;
    BEGIN
        PERFORM load.step(12);
    EXCEPTION WHEN division_by_zero THEN
        NULL;
    END;
END
$$;
DO $$
BEGIN
    FOR i IN 1..6 LOOP
        PERFORM load.step(13);
        IF i % 2 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
    END LOOP;
END
$$;
SQL
my ($status) = $node->psql('postgres', 'BEGIN; SELECT load.step(14); SELECT 1 / 0; COMMIT;');
isnt($status, 0, 'an error ends a transaction');
$node->psql('postgres', "BEGIN; SET LOCAL statement_timeout = '20ms'; SELECT load.step(15); SELECT pg_sleep(10); COMMIT;");
ok(flush($node), 'flush says that all is published');
is(committed($node), 11, 'eleven events were committed');
ok_streams($node, $redis, 'they and no others are in the streams');

# what is open is not published, and does not keep others from it

my $open = $node->background_psql('postgres');
$open->query_safe('BEGIN; SELECT load.step(21);');
emit_some($node, 5);
ok(flush($node), 'flush does not wait for what is not committed');
is($redis->published, committed($node), 'an open transaction has published nothing and holds nobody up');
$open->query_safe('COMMIT');
$open->quit;
ok(flush($node), 'flush covers a transaction that is older than its neighbours');
ok_streams($node, $redis, 'a late commit is published');

# flush

for my $mode (qw(on off)) {
    emit_some($node, 2000);
    sql("SET synchronous_commit = $mode; SELECT load.step(22)");
    my $answer = sql('SELECT outbox.flush()');
    is($redis->published, committed($node), "all is published when flush returns (synchronous_commit = $mode)");
    is($answer, 't', 'and it says so');
}
sql('SELECT outbox.pause()');
poll_until(sub { stat_sink($node)->{state} eq 'paused' }, 'the sink is paused');
my $before = $redis->published;
sql('SELECT load.step(23)');
my $began = time;
is(sql("SELECT outbox.flush('300 ms')"), 'f', 'flush says when the time was over first');
cmp_ok(time - $began, '>=', 0.3, 'not before it was');
cmp_ok(time - $began, '<', 30, 'and not with the next poll only');
is(sql("SELECT outbox.flush('0')"), 'f', 'without time it only looks');
is($redis->published, $before, 'a paused sink gets nothing');
sql('SELECT outbox.resume()');
ok(flush($node), 'and all of it when it is resumed');
ok_streams($node, $redis, 'with nothing lost or doubled by the pause');

# two-phase commit

sub prepare {
    my ($name, $aggregate) = @_;
    sql("BEGIN; SELECT load.step($aggregate, 2); PREPARE TRANSACTION '$name'");
}

# The sessions that end a transaction have never emitted anything. A worker that they do not wake looks after a second, so half a
# second on the average. The machine may stand still in some of the rounds, but not in most of them.
my @waited;
for my $n (1 .. 20) {
    prepare("quick-$n", 30 + $n);
    my $published = $redis->published;
    sql("COMMIT PREPARED 'quick-$n'");
    my $committed = time;
    poll_until(sub { $redis->published >= $published + 2 }, 'a prepared transaction is published');
    push @waited, time - $committed;
}
cmp_ok((sort { $a <=> $b } @waited)[ @waited / 2 - 1 ], '<', 0.25,
    'transactions that were committed by other sessions were published quickly') or diag("@waited");

for my $how (qw(immediate crash)) {
    prepare("$how-$_", 50 + $_) for 1 .. 6;
    emit_some($node, 20);
    ok(flush($node), 'prepared transactions hold nobody up');
    my $published = $redis->published;
    # another one, in the instant before
    prepare("$how-7", 57);
    $how eq 'crash' ? crash($node) : $node->stop('immediate');
    $node->start;
    is(prepared(), 7, "prepared transactions outlive the server ($how)");
    emit_some($node, 20);
    ok(flush($node), 'the worker is back');
    is($redis->published, $published + 20, 'nothing of a prepared transaction is published');
    sql("COMMIT PREPARED '$how-$_'") for 2, 5, 7;
    sql("ROLLBACK PREPARED '$how-$_'") for 1, 4;
    ok(flush($node), 'the others are published');
    is($redis->published, $published + 26, 'those that were committed, and only those');
    ok_streams($node, $redis, "prepared, crashed ($how), committed or rolled back by another session");
    sql("COMMIT PREPARED '$how-3'");
    sql("ROLLBACK PREPARED '$how-6'");
}
ok(flush($node), 'also what was decided last is published');
is(prepared(), 0, 'nothing is left prepared');
ok_streams($node, $redis, 'two-phase commit');

# Commits that a crash takes back. An operator's settings for the database do not reach the worker, which would then not
# wait for its own commits either.
sql("ALTER DATABASE postgres SET synchronous_commit = off");
sql("ALTER DATABASE postgres SET default_transaction_isolation = 'repeatable read'");
kill_worker($node, 'postgres', 'TERM');
my $taken_back = 0;
for my $round (1 .. $rounds) {
    # async is written by many small transactions; some of the last ones are acknowledged and gone
    my $load = start_load($node, clients => 4, restart => 0, weights => { async => 90, rollback => 10 });
    my $published = $redis->published;
    my $target = $published + 200 + int rand 300;
    poll_until(sub { $redis->published > $target }, 'asynchronous commits are published');
    my $seen = committed($node);
    $round % 2 ? $node->stop('immediate') : crash($node);
    $load->stop;
    $node->start;
    $taken_back++ if committed($node) < $seen;
}
# Did they take anything back, or would a worker that publishes too early have passed as well? While the worker waits for
# Redis, nobody makes commits durable.
for my $round (1 .. $rounds) {
    stop_redis_in_batch($node, $redis, sub { sql('SELECT load.step(61)') });
    my $committed = sql('SET synchronous_commit = off; SELECT load.step(62, 3); SELECT count(*) FROM truth');
    crash($node);
    $redis->sigcont;
    $node->start;
    $taken_back++ if committed($node) < $committed;
    poll_until(sub { flush($node) }, 'the worker is back');
}
note("$taken_back of " . 2 * $rounds . ' crashes took commits back');
wait_settled($node);
ok_streams($node, $redis, 'commits that were taken back by a crash have not been published');
cmp_ok($taken_back, '>', 0, 'and there were some');

done_testing();
