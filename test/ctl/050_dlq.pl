# outboxctl dlq: the dead letters of groups, as the client library keeps them, and those of sinks.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Ctl;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "outbox.max_attempts = 3\n");
serve($node, $redis);
my $dlq = 'outbox:{wallet}:dlq:billing';

my $run = ctl('dlq', 'ls');
is("$run->{status} $run->{out}", "0 no dead letters\n", 'nothing is dead');

sub emit { my ($type, $n) = @_; return $node->safe_psql('postgres', "SELECT outbox.emit('$type', '{\"n\": $n, \"do\": \"fail\"}')") }
my @ids = ((map { emit('wallet.created', $_) } 1 .. 4), map { emit('wallet.closed', $_) } 5 .. 6);
ok(flush($node), 'events that will fail');
my $consumer = OutboxTest::Ctl::Consumer->new($redis, max_attempts => 2, concurrency => 1);
poll_until(sub { $redis->cmd('XLEN', $dlq) == @ids }, 'all are dead');
my @entries = $redis->entries($dlq);
my @created = grep { $_->[1]{event_type} eq 'wallet.created' } @entries;    # in the order in which they died

# listing and showing

my $doc = ctl_json('dlq', 'ls');
is("$doc->{consumers_total} $doc->{sinks_total}", @ids . ' 0', 'all are counted');
is_deeply([ map { [ @$_{qw(topic group id position error attempts consumer)} ] } @{ $doc->{consumers} } ],
    [ map { [ 'wallet', 'billing', $_->[0], @{ $_->[1] }{qw(outbox_position outbox_error outbox_attempts outbox_consumer)} ] } @entries ],
    'each is as Redis has it');
is_deeply([ map { $_->{fields}{payload} } @{ $doc->{consumers} } ], [ map { $_->[1]{payload} } @entries ], 'with the entry that it was');
is(scalar @{ ctl_json('dlq', 'ls', '--limit', 2)->{consumers} }, 2, 'as many as one wants');
is(ctl_json('dlq', 'ls', '--limit', 2)->{consumers_total}, 6, 'of how many is said');
is(scalar @{ ctl_json('dlq', 'ls', '--topic', 'shop')->{consumers} }, 0, 'those of a topic');
is(scalar @{ ctl_json('dlq', 'ls', '--group', 'billing')->{consumers} }, 6, 'or of a group');
like(ctl('dlq', 'ls')->{out}, qr/^dead letters of consumer groups \(6 of 6\)\nTOPIC.*\nwallet +billing +$entries[0][0] +$entries[0][1]{event_type} +- +2 +\S+ +not yet$/m, 'as a table');
for my $name ($entries[1][0], $entries[1][1]{event_id}) {
    my $one = ctl_json('dlq', 'show', $name)->{consumers};
    is(join(' ', map { $_->{id} } @$one), $entries[1][0], 'one is found by its id, and by that of its event');
    like(ctl('dlq', 'show', $name)->{out}, qr/^error +not yet\n.*^event_id +$entries[1][1]{event_id}\n/ms, 'and shown');
}
is(ctl('dlq', 'show', '1-1')->{status}, 1, 'one that is not there is no answer');

# redriving

$run = ctl('dlq', 'redrive', '--all');
is($run->{status}, 2, 'not everything of everybody by mistake');
like($run->{err}, qr/--all and --type need --topic and --group/, 'which is said');
is(ctl('dlq', 'redrive')->{status}, 2, 'nor without a word');
is(ctl('dlq', 'redrive', '1-1', '--all', '--topic', 'wallet', '--group', 'billing')->{status}, 2, 'nor in two ways');
is(ctl('dlq', 'redrive', '--type', '..', '--topic', 'wallet', '--group', 'billing')->{status}, 2, 'nor by what is no pattern');
$consumer->open_gate;
is_deeply(ctl_json('dlq', 'redrive', $created[0][0], $created[1][1]{event_id}), { redriven => 2, not_found => [], without_fields => [] }, 'two are redriven');
poll_until(sub { $redis->cmd('XLEN', 'outbox:{wallet}:redrive:billing') == 0 }, 'they are handled');
is($redis->cmd('GET', "outbox:{wallet}:event:billing:$_"), 'done', 'handled') for map { $_->[1]{event_id} } @created[ 0, 1 ];
is(join(' ', map { $_->[0] } $redis->entries($dlq)), join(' ', map { $_->[0] } grep { $_->[0] ne $created[0][0] && $_->[0] ne $created[1][0] } @entries), 'the others are left');
is_deeply(ctl_json(1, 'dlq', 'redrive', $created[0][0]), { redriven => 0, not_found => [ $created[0][0] ], without_fields => [] }, 'one that is gone is said to be');
$run = ctl('dlq', 'redrive', '--topic', 'wallet', '--group', 'billing', '--type', '*.closed');
is("$run->{status} $run->{out}", "0 2 dead letters were redriven\n", 'those of a type');
is(join(' ', map { $_->[0] } $redis->entries($dlq)), join(' ', map { $_->[0] } @created[ 2, 3 ]), 'and no others');

# one whose entry was trimmed before it could be copied
my $hollow = $redis->cmd('XADD', $dlq, '*', outbox_position => '1-1', outbox_stream => 'outbox:{wallet}', outbox_error => 'the entry was trimmed away before it was handled',
    outbox_attempts => 0, outbox_consumer => 'worker-1', outbox_died_at => 1, outbox_aggregate => '');
is_deeply(ctl_json(1, 'dlq', 'redrive', $hollow), { redriven => 0, not_found => [], without_fields => [$hollow] }, 'nothing is left of it to be redriven');

# discarding

$run = ctl('dlq', 'discard', $hollow);
is($run->{status}, 2, 'without a terminal nothing is discarded unless one says --yes');
is($redis->cmd('XLEN', $dlq), 3, 'really');
my $terminal = OutboxTest::Ctl::Terminal->new("outboxctl dlq discard $hollow; echo status \$?");
$terminal->expect(qr/Discard 1 dead letter for ever\? \[y\/N\] /);
$terminal->type("n\n");
like($terminal->finish, qr/status 1\r?\n/, 'a no');
is($redis->cmd('XLEN', $dlq), 3, 'is a no');
$terminal = OutboxTest::Ctl::Terminal->new("outboxctl dlq discard $hollow; echo status \$?");
$terminal->expect(qr/\[y\/N\] /);
$terminal->type("y\n");
like($terminal->finish, qr/1 dead letter was discarded.*status 0\r?\n/s, 'a yes is a yes');
is(join(' ', map { $_->[0] } $redis->entries($dlq)), join(' ', map { $_->[0] } @created[ 2, 3 ]), 'it is gone');
is(ctl_json('dlq', 'discard', '--topic', 'wallet', '--group', 'billing', '--all', '--yes')->{discarded}, 2, 'all that are left');
is($redis->cmd('XLEN', $dlq), 0, 'are gone, too');
is(ctl_json('dlq', 'ls')->{consumers_total}, 0, 'and an emptied stream is none');

# of sinks

$redis->cmd('SET', 'outbox:{broken}', 'x');
my $lost = emit('broken.thing', 7);
poll_until(sub { stat_sink($node)->{dead_letters} == 1 }, 'a sink gave an event up');
$doc = ctl_json('dlq', 'ls');
my @true = split /\|/, $node->safe_psql('postgres', 'SELECT event_id, topic, event_type, position, attempts, error FROM outbox.dead_letter');
is($doc->{sinks_total}, 1, 'it is counted');
is_deeply([ @{ $doc->{sinks}[0] }{qw(event_id topic event_type position attempts error)} ], \@true, 'as outbox.dead_letter has it');
like(ctl('dlq', 'ls')->{out}, qr/^dead letters of sinks \(1 of 1\)\nSINK.*\ndefault +broken +$lost +broken\.thing +- +3 +\S+ +WRONGTYPE/m, 'as a table');
is(scalar @{ ctl_json('dlq', 'ls', '--group', 'billing')->{sinks} }, 0, 'it is no group\'s');
is(ctl_json('dlq', 'show', $lost)->{sinks}[0]{payload}, '{"n": 7, "do": "fail"}', 'it is shown');
is(ctl('dlq', 'redrive', '--of-sink', '--all', '--group', 'billing')->{status}, 2, 'a group has none of them');
is(ctl('dlq', 'redrive', '--of-sink', '--type', 'broken.*')->{status}, 2, 'and a pattern is none of their event types');
is(ctl_json('dlq', 'redrive', '--of-sink', '--topic', 'wallet', '--all')->{redriven}, 0, 'another topic has none');
is(ctl('dlq', 'discard', '--of-sink', '--all')->{status}, 2, 'without a terminal nothing is discarded unless one says --yes');
$redis->cmd('DEL', 'outbox:{broken}');
is_deeply(ctl_json('dlq', 'redrive', $lost), { redriven => 1, not_found => [], without_fields => [] }, 'it is redriven by the id of its event');
poll_until(sub { flush($node) }, 'it is sent');
is(join(' ', map { $_->[1]{event_id} } $redis->entries('outbox:{broken}')), $lost, 'and is in its stream');
$redis->spoil('outbox:{broken}');
my @more = map { emit('broken.thing', $_) } 1 .. 3;
poll_until(sub { stat_sink($node)->{dead_letters} == 3 }, 'more are given up');
is_deeply(ctl_json('dlq', 'discard', $more[0], '--yes'), { discarded => 1, not_found => [], without_fields => [] }, 'one is discarded');
$redis->mend('outbox:{broken}');
like(ctl('dlq', 'redrive', '--of-sink', '--type', 'broken.thing')->{out}, qr/^2 dead letters were redriven\n\z/, 'the others are redriven');
poll_until(sub { flush($node) }, 'they are sent');
is(join(' ', map { $_->[1]{event_id} } $redis->entries('outbox:{broken}')), join(' ', $lost, @more[ 1, 2 ]), 'in their order');
is(ctl('dlq', 'redrive', $lost)->{status}, 1, 'what is no dead letter is not found');

# two groups with a dead letter of the same event
for my $group ('a', 'b') {
    $redis->cmd('XADD', "outbox:{wallet}:dlq:$group", '7-7', outbox_position => '1-1', outbox_stream => 'outbox:{wallet}', outbox_error => 'x',
        outbox_attempts => 1, outbox_consumer => 'c', outbox_died_at => 1, outbox_aggregate => '', event_id => $ids[0], payload => '{}');
}
is(ctl('dlq', 'redrive', '7-7')->{status}, 2, 'which of two is meant must be said');
is(ctl('dlq', 'redrive', $ids[0])->{status}, 2, 'by the event, too');
is($redis->cmd('XLEN', 'outbox:{wallet}:dlq:a') + $redis->cmd('XLEN', 'outbox:{wallet}:dlq:b'), 2, 'nothing happens before');
is(ctl_json('dlq', 'redrive', '7-7', '--group', 'b')->{redriven}, 1, 'then it is done');
is($redis->cmd('XLEN', 'outbox:{wallet}:redrive:b'), 1, 'for that one');

done_testing();
