# outboxctl show: where an event is and was, with each group; and what nobody can know is not made up.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Ctl;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis, conf => "track_commit_timestamp = on\noutbox.max_attempts = 3\noutbox.response_timeout = '60s'\n");
serve($node, $redis);
my $stream = 'outbox:{wallet}';

sub emit {
    my ($payload, %more) = @_;
    my $sql = "outbox.emit('wallet.created', '$payload'" . join('', map { ", $_ => '$more{$_}'" } sort keys %more) . ')';
    my $id = $node->safe_psql('postgres', "SELECT $sql");
    flush($node) or die 'not published';
    return $id;
}

# The one event, and what it has of a group.
sub life { my $doc = ctl_json('show', $_[0]); die 'not one event' if @{ $doc->{events} } != 1; return $doc->{events}[0] }
sub group { my ($id, $group) = @_; my ($row) = grep { $_->{group} eq $group } @{ life($id)->{groups} }; return $row }
sub state_of { return group(@_)->{state} }

# an event by itself

my $id = $node->safe_psql('postgres', q{SELECT outbox.emit('wallet.created', '{"n" :1.50}', aggregate_id => 'a', aggregate_type => 'wallet', version => 2, headers => '{"k": "v"}')});
ok(flush($node), 'an event is published');
my ($entry) = $redis->entries($stream);
my $life = life($id);
my %row = map { split /\|/, $_, 2 } split /\n/, $node->safe_psql('postgres',
    "SELECT key, value FROM outbox.event e, LATERAL jsonb_each_text(to_jsonb(e) || jsonb_build_object('payload', payload::text, 'headers', headers::text)) WHERE event_id = '$id'");
for my $column (qw(event_id event_type topic aggregate_type aggregate_id version headers payload status stream position attempts)) {
    is($life->{$column}, $row{$column}, "$column is that of outbox.event");
}
is($life->{payload}, '{"n" :1.50}', 'the payload is what was emitted, byte for byte');
is($life->{position}, $entry->[0], 'the position is that of the entry in Redis');
is($life->{occurred_at}, $entry->[1]{occurred_at}, 'the time is that of the entry');
is($life->{transaction}{xid}, $row{xid}, 'the transaction is that of the row');
is($life->{transaction}{committed_at}, $node->safe_psql('postgres',
    "SELECT to_char(pg_xact_commit_timestamp(xid::xid) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') FROM outbox.event WHERE event_id = '$id'") . 'Z',
    'and when it committed is what PostgreSQL keeps');
is("$life->{tick}{ms}-$life->{tick}{index}", $entry->[0], 'the tick and the place in its batch make the position');
is($life->{tick}{ms}, $node->safe_psql('postgres', "SELECT ms FROM outbox.tick WHERE ms = $life->{tick}{ms}"), 'the tick is recorded');
ok(!$life->{moved}, 'it was not moved');
is($life->{entry}{state}, 'present', 'the entry is there');
is_deeply($life->{groups}, [], 'there is no group');
like(ctl('show', uc $id)->{out}, qr/^event +$id$/m, 'an id may be written in capitals');

# with each state that a group can have it in, by the real library

my $gated = emit('{"n": 2, "do": "gate"}', aggregate_id => 'b');
my $dead = emit('{"n": 3, "do": "throw"}', aggregate_id => 'c');
my $behind = emit('{"n": 4}', aggregate_id => 'c');
$redis->cmd('XGROUP', 'CREATE', $stream, 'mail', 0);
my $consumer = OutboxTest::Ctl::Consumer->new($redis, max_attempts => 2, park => 1, claim_idle => 60000);
poll_until(sub { $redis->cmd('XLEN', "$stream:dlq:billing") == 1 && $redis->cmd('HLEN', "$stream:parked:billing") == 1 }, 'an event is dead');
poll_until(sub { state_of($behind, 'billing') eq 'parked' }, 'the next of its aggregate is parked');
pass('parked');
is(state_of($_, 'mail'), 'not_delivered', 'a group that has read nothing has not been given it') for $id, $behind;
poll_until(sub { state_of($id, 'billing') eq 'handled' }, 'an event is handled');
is($redis->cmd('GET', "$stream:event:billing:$id"), 'done', 'handled is what its mark says');
my $pending = group($gated, 'billing');
my ($position) = map { $_->{position} } life($gated);
my $true = $redis->cmd('XPENDING', $stream, 'billing', $position, $position, 1)->[0];
is_deeply([ @$pending{qw(state consumer deliveries)} ], [ 'pending', 'worker-1', $true->[3] ], 'one in a handler is pending with its consumer');
ok($pending->{idle_seconds} <= $true->[2] / 1000, 'for as long as Redis says');
my %letter = @{ $redis->cmd('XRANGE', "$stream:dlq:billing", '-', '+')->[0][1] };
my $grave = group($dead, 'billing');
is_deeply([ $grave->{state}, $grave->{attempts}, @{ $grave->{dead_letter} }{qw(id error)}, $grave->{consumer} ],
    [ 'dead_lettered', 2, $redis->cmd('XRANGE', "$stream:dlq:billing", '-', '+')->[0][0], $letter{outbox_error}, $letter{outbox_consumer} ],
    'one that failed for good is a dead letter, with its error');
like(ctl('show', $dead)->{out}, qr/^group billing +dead letter \S+ since \S+ after 2 attempts: no luck$/m, 'for people, too');
like(ctl('show', $behind)->{out}, qr/^group billing +parked behind the dead letter of its aggregate$/m, 'what is parked');
like(ctl('show', $gated)->{out}, qr/^group billing +pending: given to worker-1, delivered 1 time, idle for /m, 'what is pending');

# redriven while nobody is there to handle it
$consumer->open_gate;
poll_until(sub { state_of($gated, 'billing') eq 'handled' }, 'the handler is done');
$consumer->stop;
is(ctl('dlq', 'redrive', $grave->{dead_letter}{id})->{status}, 0, 'the dead letter is redriven');
is(state_of($dead, 'billing'), 'redriven', 'then it is to be handled again');
is(state_of($behind, 'billing'), 'redriven', 'and what was parked behind it');

# acknowledged by somebody who leaves no mark
$redis->cmd('XREADGROUP', 'GROUP', 'mail', 'm', 'COUNT', 1, 'STREAMS', $stream, '>');
is(state_of($id, 'mail'), 'pending', 'another client of Redis has it');
$redis->cmd('XACK', $stream, 'mail', $entry->[0]);
my $passed = group($id, 'mail');
is($passed->{state}, 'passed', 'acknowledged without a mark');
like($passed->{detail}, qr/acknowledged, or the group was made to begin behind it: Redis does not keep which/, 'is what cannot be told');

# where an entry is not

my @entries = $redis->entries($stream);
$redis->cmd('XTRIM', $stream, 'MINID', $entries[1][0]);
like(life($id)->{entry}{reason}, qr/trimmed or deleted: the stream begins at $entries[1][0]/, 'an entry before the beginning was trimmed or deleted');
$redis->cmd('XDEL', $stream, $entries[2][0]);
like(life($dead)->{entry}{reason}, qr/there are entries before it and after it/, 'one in the middle was deleted or never there');
is(life($dead)->{status}, 'published', 'whatever PostgreSQL has confirmed');
my $out = ctl('show', $id)->{out};
like($out, qr/^entry +absent: /m, 'people are told');
$redis->cmd('DEL', $stream);
like(life($gated)->{entry}{reason}, qr/Redis has no such stream/, 'nor is it in a stream that is not there');

# not yet

$node->safe_psql('postgres', 'SELECT outbox.pause()');
# (the view says so at once, the worker when it knows)
poll_until(sub { $node->safe_psql('postgres', 'SELECT state FROM outbox.worker_state() WHERE sink_id = 1') eq 'paused' }, 'the sink is paused');
my $waiting = $node->safe_psql('postgres', q{SELECT outbox.emit('shop.opened', '{}')});
my $run = ctl('show', $waiting);
is($run->{status}, 0, 'an event that waits is shown');
like($run->{out}, qr/^status +pending$/m, 'as waiting');
like($run->{out}, qr/^entry +(unknown: the event has no position yet|absent: Redis has no such stream)$/m, 'and no entry is made up');
$node->safe_psql('postgres', 'SELECT outbox.resume()');
poll_until(sub { life($waiting)->{status} eq 'published' }, 'it is published');

# to be delivered later

my $later = $node->safe_psql('postgres', q{SELECT outbox.emit('shop.opened', '{"n": 1}', aggregate_id => 'a', deliver_at => '2034-05-06 07:08:09+00')});
$run = ctl('show', $later);
is($run->{status}, 0, 'a delayed event is shown');
like($run->{out}, qr/^event +$later\n.*^topic +shop\n.*^status +delayed until 2034-05-06T07:08:09\S*Z, in \d+ d.*^payload +\{"n": 1\}$/ms, 'until when it is delayed');
is(ctl_json('show', $later)->{delayed}[0]{aggregate_id}, 'a', 'for scripts, too');
is_deeply(ctl_json('show', $id)->{delayed}, [], 'others are not delayed');
$node->safe_psql('postgres', "SELECT outbox.cancel('$later')");
is(ctl('show', $later)->{status}, 1, 'one that was cancelled is gone');

# a sink's dead letter

$redis->cmd('SET', 'outbox:{broken}', 'x');
my $lost = $node->safe_psql('postgres', q{SELECT outbox.emit('broken.thing', '{}')});
poll_until(sub { life($lost)->{status} eq 'dead_letter' }, 'an event that its stream refuses is dead');
my $doc = ctl_json('show', $lost);
my @true = split /\|/, $node->safe_psql('postgres', "SELECT position, attempts, error FROM outbox.dead_letter WHERE event_id = '$lost'");
is_deeply([ @{ $doc->{dead_letters}[0] }{qw(position attempts error)} ], \@true, 'its dead letter is that of outbox.dead_letter');
like(ctl('show', $lost)->{out}, qr/^dead letter of sink default since \S+ after 3 attempts: WRONGTYPE/m, 'for people, too');

# what is not there

$run = ctl('show', '00000000-0000-7000-8000-000000000000');
is($run->{status}, 1, 'an unknown event is no answer');
like($run->{err}, qr/no event 00000000-0000-7000-8000-000000000000 in database "postgres"\nhint: .*rolled back.*outbox\.retention/, 'with what may be the reason');
is(ctl('show', 'wallet')->{status}, 2, 'what can be no id is wrong usage');
$run = ctl('show', $gated, '--redis', 'unix:///nonexistent/redis.sock');
is($run->{status}, 3, 'without Redis the half of PostgreSQL is shown');
like($run->{out}, qr/^position +\d+-\d+ in outbox:\{wallet\}.*^entry +unknown: could not connect.*^groups +unknown$/ms, 'and the other is unknown');

$node->append_conf('postgresql.conf', "track_commit_timestamp = off\n");
$node->restart;
$life = life($gated);
is($life->{transaction}{committed_at}, undef, 'without track_commit_timestamp nobody knows when');
like(ctl('show', $gated)->{out}, qr/^transaction +\d+, committed; when is not kept: track_commit_timestamp is off$/m, 'which is said');

done_testing();
