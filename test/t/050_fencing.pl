# Two servers that believe to be the same: a file-level clone next to its original, both on one Redis. Only one of them sends.
# Which one it is changes when the other is gone for as long as its lease, or when somebody says so; and no event that both
# have is appended twice.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Positions;

my $redis = OutboxTest::Redis->new;
# a worker that stands still for less than that, with the machine, keeps its lease
my $node = new_node(name => 'original', redis => $redis, streaming => 1, conf => "outbox.lease_timeout = '6s'\n");
run_load($node, clients => 2, transactions => 50);
wait_settled($node);

# pending in both, when the clone is made
$redis->sigstop;
run_load($node, clients => 2, transactions => 50);
$node->backup('copy');
$redis->sigcont;
wait_settled($node);

my $clone = PostgreSQL::Test::Cluster->new('clone');
$clone->init_from_backup($node, 'copy');

sub truth_ids {
    my ($of) = @_;
    return { map { $_ => 1 } split /\n/, $of->safe_psql('postgres', 'SELECT event_id FROM truth') };
}

sub state_of { return stat_sink($_[0])->{state} }

# Everything that the server committed is there, and nobody's event is there twice. What only the other one has is no ghost.
sub ok_both {
    my ($of, $others, $name) = @_;
    my $own = truth_ids($of);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    ok_streams($of, $redis, $name, ignore => sub { my $id = $_[2]{event_id}; $others->{$id} && !$own->{$id} });
    my $ids = event_ids($redis);
    is((grep { $_ > 1 } values %$ids), 0, "$name: no event is there twice");
    return;
}

sub count_of {
    my ($ids) = @_;
    my $there = event_ids($redis);
    return scalar grep { $there->{$_} } keys %$ids;
}

# the original lives

my $load = start_load($node, clients => 2, rate => 150);
$clone->start;
poll_until(sub { state_of($clone) eq 'fenced' }, 'the clone is fenced');
emit_some($clone, 30);
my $only_clone = truth_ids($clone);
delete $only_clone->{$_} for keys %{ truth_ids($node) };
is(scalar keys %$only_clone, 30, 'the clone has events of its own');
poll_until(
    sub {
        log_has($clone, qr/WARNING:  sink "default" is served by a worker of another server\n.*DETAIL:.*live lease.*\n.*HINT:  .*take_over => true/);
    },
    'its log says so, with a hint');
is(flush($clone, 'postgres', '1 s'), '', 'and nothing of it is published');
$load->stop;
wait_settled($node);
poll_until(
    sub { $clone->safe_psql('postgres', "SELECT clock_timestamp() - since > '7 s' FROM outbox.stat_sink WHERE state = 'fenced'") eq 't' },
    'the clone is fenced for longer than a lease, with nothing to do for the original');
is(count_of($only_clone), 0, 'the clone has sent nothing');
ok_both($node, {}, 'a living original is not disturbed by its clone');

# the clone is told to take over

my %nodes_before = %{ truth_ids($node) };
$clone->safe_psql('postgres', "SELECT outbox.resume('default', take_over => true)");
poll_until(sub { state_of($clone) =~ /streaming|idle/ }, 'the clone works');
poll_until(sub { state_of($node) eq 'fenced' }, 'the original is fenced');
poll_until(sub { flush($clone) }, 'the clone publishes');
is(count_of($only_clone), 30, 'what waited in the clone is published');
ok_both($clone, \%nodes_before, 'what both have is not published again');
poll_until(sub { log_has($node, qr/WARNING:  sink "default" is served by a worker of another server/) },
    'the original says that it was displaced', 90);
emit_some($node, 30);
is(flush($node, 'postgres', '1 s'), '', 'nothing more of the original is published');
my $only_node = truth_ids($node);
delete $only_node->{$_} for keys %nodes_before;
is(count_of($only_node), 0, 'nor sent');
run_load($clone, clients => 2, transactions => 50);
wait_settled($clone);
ok_both($clone, \%nodes_before, 'the clone goes on');

# that was meant once: a restart of the displaced one does not displace back
my $offset = -s $clone->logfile;
$node->restart;
poll_until(sub { state_of($node) eq 'fenced' }, 'the original is still fenced after a restart');
is($clone->safe_psql('postgres', 'SELECT take_over FROM outbox.sink_definition'), 'f', 'taking over was for once');
emit_some($clone, 10);
ok(flush($clone), 'and the clone serves on') or diag explain stat_sink($clone);
ok(!log_has($clone, qr/is served by a worker of another server/, $offset), 'without a break');

# the clone goes away

my $clones = truth_ids($clone);
$clone->stop('immediate');
poll_until(sub { state_of($node) =~ /streaming|idle/ }, 'the original goes on by itself when the lease has expired');
poll_until(sub { flush($node) }, 'the original publishes');
is(count_of($only_node), 30, 'what waited is published');
ok_both($node, $clones, 'with nothing doubled');
run_load($node, clients => 2, transactions => 50);
wait_settled($node);
ok_both($node, $clones, 'and new events get through');

# the clone comes back, and the worker of the original hangs: its last words do not count

$clone->start;
poll_until(sub { state_of($clone) eq 'fenced' }, 'now the clone is fenced');
$load = start_load($node, clients => 2, rate => 150);
my $published = $redis->published;
poll_until(sub { $redis->published > $published + 50 }, 'the original is at work');
my $pid = wait_for_worker($node);
kill 'STOP', $pid;
emit_some($clone, 30);
poll_until(sub { state_of($clone) =~ /streaming|idle/ }, 'the clone takes over from a worker that hangs');
$load->stop;
poll_until(sub { flush($clone) }, 'the clone publishes');
my %there = %{ event_ids($redis) };
kill 'CONT', $pid;
poll_until(sub { state_of($node) eq 'fenced' }, 'the worker that hung is fenced when it comes to');
is_deeply([ sort keys %{ event_ids($redis) } ], [ sort keys %there ], 'and has said nothing more');
ok_both($clone, truth_ids($node), 'nothing is lost or doubled');

done_testing();
