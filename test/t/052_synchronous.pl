# With a synchronous standby, an event is sent only when the standby has it. A tick whose wait for the standby was cut short is
# no leave to send, nor is one that an earlier worker had recorded.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/lib";
use OutboxTest;
use Test::More;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, name => 'primary', streaming => 1);
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);

is(worker_pid($standby), undef, 'a standby has no worker');
emit_some($node, 5);
ok(flush($node), 'events are published while nothing is synchronous');

$node->append_conf('postgresql.conf', "synchronous_standby_names = 'standby'");
$node->reload;
poll_until(sub { $node->safe_psql('postgres', "SELECT sync_state FROM pg_stat_replication") eq 'sync' },
    'the standby is synchronous');
emit_some($node, 5);
ok(flush($node), 'and while the standby answers');
my $published = $redis->published;

$standby->stop('immediate');
poll_until(sub { $node->safe_psql('postgres', 'SELECT count(*) FROM pg_stat_replication') eq '0' }, 'the standby is gone');

# Committed here, and visible to everybody here, but not on the standby.
$node->safe_psql('postgres', q{
    SET synchronous_commit = local;
    SELECT outbox.emit('wallet.created', '{}', event_id => '00000000-0000-0000-0000-00000000aaaa')});
my $waits = q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'outbox worker' AND wait_event = 'SyncRep'};
poll_until(sub { $node->safe_psql('postgres', $waits) eq '1' }, 'the worker waits for the standby');
is($redis->published, $published, 'nothing is sent while the tick waits');

my $pid = worker_pid($node);
$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
is($node->safe_psql('postgres', $waits), '1', 'pg_cancel_backend does not end the wait');

kill_worker($node, 'postgres', 'TERM');
poll_until(sub { my $new = worker_pid($node); $new && $new != $pid }, 'another worker has started');
poll_until(sub { $node->safe_psql('postgres', $waits) eq '1' }, 'the next worker waits in turn before it sends anything');
is($redis->published, $published, 'the tick whose wait was cut short was not sent');

$standby->start;
poll_until(sub { $redis->published == $published + 1 }, 'the event is published when the standby is back');
$node->wait_for_catchup($standby);
is($standby->safe_psql('postgres',
        q{SELECT count(*) FROM outbox.stored_event WHERE event_id = '00000000-0000-0000-0000-00000000aaaa'}),
    '1', 'and the standby has it');

done_testing();
