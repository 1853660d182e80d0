# Transaction ids have 32 bits in a row's header and 64 where order matters. Here they run over the end of the 32 bits under
# load, with a crash on either side, and what is old is frozen.
use strict;
use warnings;

use OutboxTest;
use OutboxTest::Positions;
use PostgreSQL::Test::Utils;
use Test::More;

my $end = 2**32;
my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, start => 0);

# once all that there is is frozen, ids may be whatever they like
$node->start;
$node->command_ok([ 'vacuumdb', '--all', '--freeze', '--quiet' ], 'what is there is frozen');
$node->stop;
my $first = $end - 4000;
command_ok([ 'pg_resetwal', '-D', $node->data_dir, '-x', $first, '-u', $first - 1000 ], 'transaction ids begin below the end');
my $segment = sprintf '%s/pg_xact/%04X', $node->data_dir, $first / (32 * 8192 * 4);
append_to_file($segment, "\0" x (32 * 8192));
$node->append_conf('postgresql.conf', "autovacuum = off\n");
$node->start;
# and nobody is to think that there are rows of a future
$node->safe_psql($_, "SET allow_system_table_mods = on; UPDATE pg_class SET relfrozenxid = '$first' WHERE relfrozenxid <> '0'; "
    . "UPDATE pg_database SET datfrozenxid = '$first'") for qw(postgres template1);
$node->append_conf('postgresql.conf', "autovacuum = on\n");
$node->reload;

sub sql { return $node->safe_psql('postgres', $_[0]) }
sub next_xid { return sql('SELECT pg_snapshot_xmax(pg_current_snapshot())') }

prepare_database($node, 'postgres');
cmp_ok(next_xid(), '<', $end, 'they are below the end');
my $load = start_load($node, clients => 4);
poll_until(sub { next_xid() > $end - 1500 }, 'the end is near');
sql("BEGIN; SELECT load.step(900); PREPARE TRANSACTION 'old'");
crash($node);
$node->start;
poll_until(sub { next_xid() > $end + 1500 }, 'the end is passed');
crash($node);
$node->start;
sql("COMMIT PREPARED 'old'");
poll_until(sub { next_xid() > $end + 3000 }, 'and it goes on');
$load->stop;
wait_settled($node);
ok_streams($node, $redis, 'what is emitted on both sides of the end arrives');
ok_positions($node, $redis, 'at its place');

sql('VACUUM (FREEZE)');
ok_positions($node, $redis, 'also when its rows are frozen');
$redis->cmd('FLUSHALL');
emit_some($node, 10);
wait_settled($node);
ok_streams($node, $redis, 'all of it is appended again when Redis has lost it');
is(sql('SELECT count(*) FROM outbox.verify()'), 0, 'and outbox.verify() finds nothing');

done_testing();
