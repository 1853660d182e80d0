# outboxctl replay: starts one and shows how far it is; lists, follows and cancels.
use strict;
use warnings;
use Test::More;

use OutboxTest;
use OutboxTest::Ctl;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis);
serve($node, $redis);
emit_some($node, 60);
ok(flush($node), 'there are events');
my $events = committed($node);

sub length_of { my ($prefix) = @_; my $n = 0; $n += $redis->cmd('XLEN', $_) for @{ $redis->cmd('KEYS', "$prefix:{*}") }; return $n }

my $run = ctl('replay', '--into', 'copy:{%t}');
is($run->{status}, 0, 'a replay');
like($run->{out}, qr/^replay 1 of sink "default" into copy:\{\*\} is done: $events of $events events\n\z/, 'says what it did');
is($run->{err}, '', 'without a terminal there is no progress bar');
is(length_of('copy'), $events, 'which is so');
my ($key) = @{ $redis->cmd('KEYS', 'outbox:{*}') };
my ($topic) = $key =~ /\{(.*)\}/;
my $doc = ctl_json('replay', '--topic', $topic, '--into', 'one:{%t}', '--since', '1h');
is("$doc->{state} $doc->{done} $doc->{topics}", join(' ', 'done', $redis->cmd('XLEN', $key), $topic), 'scripts are told, of one topic');
my ($first) = map { $_->[0] } $redis->entries($key);
is(ctl_json('replay', '--since', $first, '--until', $first, '--into', 'first:{%t}')->{done}, 1, 'from a position to a position');

# wrong usage, and what cannot be

is(ctl('replay', '--since', 'soon')->{status}, 2, 'what is no time is wrong usage');
is(ctl('replay', '--rate', 0)->{status}, 2, 'so is no rate at all');
is(ctl('replay', '--list', '--cancel', 1)->{status}, 2, 'or two things at once');
is(ctl('replay', '--cancel', 99)->{status}, 1, 'one that is not there');
is(ctl('replay', '--sink', 'nowhere')->{status}, 3, 'a sink that is not there');
$redis->cmd('XADD', "taken:{$topic}", '99999999999999-0', 'a', 'b');
$run = ctl('replay', '--into', 'taken:{%t}', '--topic', $topic);
is($run->{status}, 1, 'one that fails');
like($run->{out}, qr/ is failed: .*\nstream "taken:\{$topic\}" has entries of others/, 'says why');

# left alone, followed, cancelled

is(ctl_json('replay', '--into', 'slow:{%t}', '--rate', 1, '--no-wait')->{state} =~ /^(?:waiting|running)\z/ ? 1 : 0, 1, 'one is started and left alone');
my ($slow) = grep { $_->{rate} } @{ ctl_json('replay', '--list')->{replays} };
is($slow->{rate}, 1, 'it is listed');
my $terminal = OutboxTest::Ctl::Terminal->new("trap : INT; outboxctl replay --follow $slow->{id}; echo status \$?");
$terminal->expect(qr/\d+ of $events events, running at /);
$terminal->type("\x03");
like($terminal->finish, qr/replay $slow->{id} goes on: .*status 130/s, 'ctrl-c ends the looking, not the replay');
is($node->safe_psql('postgres', "SELECT state FROM outbox.stat_replay WHERE id = $slow->{id}"), 'running', 'really');
is(ctl('replay', '--cancel', $slow->{id})->{status}, 0, 'it is cancelled');
is(ctl('replay', '--cancel', $slow->{id})->{status}, 1, 'once');
is(ctl('replay', '--follow', $slow->{id})->{status}, 1, 'who waits for it is told');
like(ctl('replay', '--list')->{out}, qr/^ +$slow->{id} +default +cancelled +slow:\{\*\} +\d+ +$events /m, 'the list has it');

done_testing();
