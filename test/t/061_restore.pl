# A dump restored elsewhere is a copy until somebody says that it is the real one: its sinks are paused, nothing is sent. After
# outbox.resume() what had not been published is, once, and what had been is not published again.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Positions;

my $redis = OutboxTest::Redis->new;
my $old = new_node(name => 'old', redis => $redis, conf => "outbox.max_attempts = 2\n");

# dead letters, published events, pending ones

$redis->cmd('SET', 'outbox:{audit}', 'no stream');
run_load($old, clients => 2, transactions => 50);
poll_until(sub { flush($old) }, 'every event is published or dead');
cmp_ok(stat_sink($old)->{dead_letters}, '>', 0, 'there are dead letters');
$redis->cmd('DEL', 'outbox:{audit}');
run_load($old, clients => 2, transactions => 50);
poll_until(sub { flush($old) }, 'everything is published');
my $letters = 'SELECT event_id, topic, payload, position, attempts, error, dead_at FROM outbox.dead_letter ORDER BY 1';
my $dead = $old->safe_psql('postgres', $letters);
my %dead = map { (split /\|/)[0] => 1 } grep { /^[0-9a-f-]{36}\|/ } split /\n/, $dead;
my $published = $redis->published;

pause_sink($old);
run_load($old, clients => 2, transactions => 50);
is($redis->published, $published, 'a paused sink sends nothing');
my $pending = $old->safe_psql('postgres', "SELECT count(*) FROM outbox.event WHERE status = 'pending' OR status = 'processing'");
is($pending, committed($old) - $published - keys %dead, 'what came since is pending');

my $dumps = PostgreSQL::Test::Utils::tempdir();
$old->command_ok([ 'pg_dump', '-f', "$dumps/plain.sql", 'postgres' ], 'pg_dump');
$old->command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/custom", 'postgres' ], 'pg_dump -Fc');
my $last_seq = $old->safe_psql('postgres', 'SELECT last_value FROM outbox.event_seq');
my $uuid = $old->safe_psql('postgres', 'SELECT uuid FROM outbox.sink');

# restored into the same cluster, and copied there

$old->safe_psql('postgres', 'CREATE DATABASE beside');
$old->command_ok([ 'pg_restore', '-d', 'beside', "$dumps/custom" ], 'pg_restore into the same cluster');
$old->safe_psql('postgres', "SELECT outbox.resume('default')");
poll_until(sub { flush($old) }, 'everything is published');
$published = $redis->published;
$old->safe_psql('template1', 'CREATE DATABASE copied TEMPLATE postgres');
for my $db ('beside', 'copied') {
    poll_until(sub { stat_sink($old, $db)->{pid} }, "$db has a worker");
    poll_until(sub { stat_sink($old, $db)->{state} eq 'paused (restored)' }, "the sink of $db is paused");
    emit_some($old, 20, $db);
    is(flush($old, $db, '500 ms'), '', "nothing is published from $db");
}
for my $db ('beside', 'copied') {
    poll_until(sub { my $pid = worker_pid($old, $db); $pid && log_has($old, qr/\[$pid\] LOG:  sink "default" is paused: this database was restored from a dump/) },
        "the worker of $db has said so");
}
is($redis->published, $published, 'nor sent');
dead_and_whole($old, 'the original is not affected');
$old->safe_psql('postgres', "DROP DATABASE $_") for 'beside', 'copied';

# plain, into another cluster; the old one is gone before all of it was published

my $confirmed = $redis->published;
poll_until(
    sub {
        $old->safe_psql('postgres', q{SELECT ms || '-' || n FROM outbox.checkpoint}) eq stat_sink($old)->{position};
    },
    'what was confirmed is written down, and so will be in the dump');
$redis->sigstop;
run_load($old, clients => 2, transactions => 30);
$old->command_ok([ 'pg_dump', '-f', "$dumps/plain.sql", 'postgres' ], 'pg_dump with pending events');
$old->command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/custom", 'postgres' ], 'pg_dump -Fc');
$last_seq = $old->safe_psql('postgres', 'SELECT last_value FROM outbox.event_seq');
$old->stop('immediate');
$redis->sigcont;
$published = $redis->published;

my $plain = new_node(name => 'plain', redis => $redis, extension => 0, load => 0);
restored($plain, sub { $plain->psql('postgres', undef, on_error_stop => 1, extra_params => [ '-q', '-f', "$dumps/plain.sql" ]) });
my $custom = new_node(name => 'custom', redis => $redis, extension => 0, load => 0);
restored($custom, sub { $custom->command_ok([ 'pg_restore', '-j2', '--exit-on-error', '-d', 'postgres', "$dumps/custom" ], 'pg_restore -j2') });

sub restored {
    my ($node, $restore) = @_;
    my $name = $node->name;
    my $before = $redis->published;
    $restore->();
    poll_until(sub { stat_sink($node)->{pid} }, 'there is a worker');
    poll_until(sub { stat_sink($node)->{state} eq 'paused (restored)' }, 'the sink is paused');
    is($node->safe_psql('postgres', 'SELECT uuid, restored FROM outbox.sink'), "$uuid|t", "$name: it is the same sink, restored");
    poll_until(
        sub {
            log_has($node, qr/LOG:  sink "default" is paused: this database was restored.*\n.*HINT:  .*outbox\.resume\('default'\)/);
        },
        'the log says so, with a hint');
    cmp_ok($node->safe_psql('postgres', 'SELECT last_value FROM outbox.event_seq'), '>=', $last_seq, "$name: sequences go on");
    is($node->safe_psql('postgres', $letters), $dead, "$name: dead letters are kept");
    my $committed = committed($node);
    run_load($node, clients => 2, transactions => 20);
    cmp_ok(committed($node), '>', $committed, "$name: emit works meanwhile");
    is(flush($node, 'postgres', '500 ms'), '', "$name: nothing is published");
    end_worker($node);
    is(stat_sink($node)->{state}, 'paused (restored)', "$name: it is paused again");
    is($redis->published, $before, "$name: nothing was sent, also after a restart of the worker");
    is(stat_sink($node)->{lag_events}, $node->safe_psql('postgres', 'SELECT count(*) FROM truth') - $confirmed - keys %dead,
        "$name: stat_sink counts what waits");
    return;
}

# Another one has come, and has seen what there is, when this returns.
sub end_worker {
    my ($node) = @_;
    my $pid = kill_worker($node, 'postgres', 'TERM');
    poll_until(
        sub {
            my ($now, $state) = split /\|/, $node->safe_psql('postgres', 'SELECT pid, state FROM outbox.worker_state()');
            $now && $now != $pid && $state =~ /^(paused|streaming)/;
        },
        'there is another worker');
    return;
}

sub resumed {
    my ($node, $name, @ignore) = @_;
    my $from = -s $node->logfile;
    $node->safe_psql('postgres', "SELECT outbox.resume('default')");
    poll_until(sub { flush($node) }, 'everything is published');
    run_load($node, clients => 2, transactions => 30);
    wait_settled($node);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    dead_and_whole($node, $name, @ignore);
    is($node->safe_psql('postgres', "SELECT restored, paused FROM outbox.sink"), 'f|f', 'the sink is its own again');
    return;
}

# Exactly the dead letters are missing.
sub dead_and_whole {
    my ($node, $name, @ignore) = @_;
    my $found = check_streams($node, $redis, @ignore);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is_deeply([ @$found{qw(lost ghost duplicated out_of_order corrupt unordered_ids)} ], [ scalar keys %dead, 0, 0, 0, 0, 0 ], $name)
        or diag(join "\n", map({ "$_ $found->{$_}" } qw(committed published)), @{ $found->{details} });
    return;
}

resumed($plain, 'after resume() what was pending is published once, and what was published is not doubled');
ok_positions($plain, $redis, 'outbox.event says where everything is');
end_worker($plain);
poll_until(sub { flush($plain) }, 'the worker is back');
dead_and_whole($plain, 'also after a restart of the worker');

# the second copy of the same dump: what the first has published since is there too, and some of it is its own

my %of_first = map { $_ => 1 } split /\n/, $plain->safe_psql('postgres', 'SELECT event_id FROM truth');
delete $of_first{$_} for split /\n/, $custom->safe_psql('postgres', 'SELECT event_id FROM truth');
$plain->stop('immediate');
resumed($custom, 'a second copy, once it is the real one, does not double what the first has published',
    ignore => sub { $of_first{ $_[2]{event_id} } });
is((grep { $_ > 1 } values %{ event_ids($redis) }), 0, 'no event of anybody is in the streams twice');

# a restored sink that was paused stays so in its own right until it is resumed

$custom->safe_psql('postgres', "SELECT outbox.pause('default')");
$custom->safe_psql('postgres', 'CREATE DATABASE paused');
$custom->command_ok([ 'pg_dump', '-Fc', '-f', "$dumps/paused", 'postgres' ], 'pg_dump of a paused sink');
$custom->command_ok([ 'pg_restore', '-d', 'paused', "$dumps/paused" ], 'pg_restore');
is($custom->safe_psql('paused', 'SELECT paused, restored FROM outbox.sink'), 't|t', 'that it was paused is restored');

done_testing();
