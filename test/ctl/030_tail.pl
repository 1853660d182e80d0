# outboxctl tail: the entries of all streams in their one order, from where one wants them on, and what comes.
use strict;
use warnings;
use IPC::Run ();
use JSON::PP ();
use Test::More;

use OutboxTest;
use OutboxTest::Ctl;

my $redis = OutboxTest::Redis->new;
my $node = new_node(redis => $redis);
serve($node, $redis);
run_load($node, clients => 2, transactions => 80);
$node->safe_psql('postgres', 'SELECT load.step(2) FROM generate_series(1, 130)');
wait_settled($node);

# every entry there is, by position: [ position, stream, fields ]
sub everything {
    my @all = map { my $stream = $_; map { [ $_->[0], $stream, $_->[1] ] } $redis->entries($stream) } $redis->streams;
    my $key = sub { my ($ms, $n) = split /-/, $_[0][0]; return sprintf '%020d-%020d', $ms, $n };
    return sort { $key->($a) cmp $key->($b) } @all;
}
sub decode { return map { JSON::PP->new->utf8->decode($_) } split /\n/, $_[0] }
sub positions { return join ' ', map { $_->{position} } @_ }

my @all = everything();
cmp_ok($redis->cmd('XLEN', 'outbox:{wallet}'), '>', 100, 'a stream has more entries than are read at once');
my $run = ctl(qw(tail --no-follow --since 0 --json));
is($run->{status}, 0, 'all entries are shown');
my @shown = decode($run->{out});
is(positions(@shown), join(' ', map { $_->[0] } @all), 'each once, in the order of their positions over all streams');
is_deeply([ map { my %line = %$_; delete @line{qw(position stream topic)}; \%line } @shown ],
    [ map { my %fields = %{ $_->[2] }; utf8::decode($_) for values %fields; \%fields } @all ], 'with every field as it is in Redis, byte for byte');
is_deeply([ map { "$_->{stream} outbox:{$_->{topic}}" } @shown ], [ map { "$_->[1] $_->[1]" } @all ], 'and their streams');

# where it begins

is(positions(decode(ctl(qw(tail --no-follow --json))->{out})), join(' ', map { $_->[0] } @all[ -10 .. -1 ]), 'without a word it begins ten entries before the end');
is(positions(decode(ctl(qw(tail --no-follow --json -n 37))->{out})), join(' ', map { $_->[0] } @all[ -37 .. -1 ]), 'or as many as one says');
is(ctl(qw(tail --no-follow --json --count 0))->{out}, '', 'or none');
my @wallet = grep { $_->[1] eq 'outbox:{wallet}' } @all;
is(positions(decode(ctl(qw(tail wallet --no-follow --json -n 5))->{out})), join(' ', map { $_->[0] } @wallet[ -5 .. -1 ]), 'in one topic');
my $from = $all[50][0];
is(positions(decode(ctl(qw(tail --no-follow --json --since), $from)->{out})), join(' ', map { $_->[0] } @all[ 50 .. $#all ]), 'from a position on, with it');
is(positions(decode(ctl(qw(tail --no-follow --json -n 3 --since), $from)->{out})), join(' ', map { $_->[0] } @all[ -3 .. -1 ]), 'the last of those');
is(ctl(qw(tail --no-follow --json -n 3 --since), '9999999999999-0')->{out}, '', 'of which there may be none');
my ($ms) = split /-/, $from;
my @since = grep { (split /-/, $_->[0])[0] >= $ms } @all;
my $time = $node->safe_psql('postgres', "SELECT to_char(to_timestamp($ms / 1000.0), 'YYYY-MM-DD\"T\"HH24:MI:SS.MS')");
for my $form ($time . 'Z', $time =~ s/T/ /r, $time . '+00:00', $node->safe_psql('postgres', "SELECT to_char(to_timestamp($ms / 1000.0) - interval '90 min', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS')") . '-01:30') {
    is(positions(decode(ctl(qw(tail --no-follow --json --since), $form)->{out})), join(' ', map { $_->[0] } @since), "since $form");
}
is(positions(decode(ctl(qw(tail --no-follow --json --since 2h))->{out})), join(' ', map { $_->[0] } @all), 'since two hours ago');
for my $wrong ('yesterday', '2026-13-01', '2026-11-21T25:00', '10', '5 minutes', '2026-11-21T08:55:15Zulu', '') {
    next if $wrong eq '';
    is(ctl(qw(tail --no-follow --since), $wrong)->{status}, 2, "\"$wrong\" is no point in time");
}

# for people

$run = ctl(qw(tail --no-follow -n 1));
my $last = $all[-1];
my %fields = %{ $last->[2] };
my $payload = $fields{payload} =~ s/([\x00-\x1f\x7f])/sprintf '\\x%02x', ord $1/ger;
my ($topic) = $last->[1] =~ /\{(.*)\}/;
is($run->{out}, join('  ', $run->{out} =~ /^(\S+)/, $last->[0], $topic, @fields{qw(event_type aggregate_id event_id)}, $payload) . "\n",
    'a line has the position, the topic, type, aggregate, id and payload, on one line whatever is in it');
my ($last_ms) = split /-/, $last->[0];
is($run->{out} =~ s/\s.*//sr, $node->safe_psql('postgres', "SELECT to_char(to_timestamp($last_ms / 1000.0), 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"), 'and the time');
$node->safe_psql('postgres', q{SELECT outbox.emit('wallet.created', json_build_object('a', repeat('x', 500)), aggregate_id => E'\x1b[31mred')});
ok(flush($node), 'an event that is long and coloured');
$run = ctl(qw(tail --no-follow -n 1));
like($run->{out}, qr/  \\x1b\[31mred  .*x{500}/, 'is shown as a whole, and tame');
my $terminal = OutboxTest::Ctl::Terminal->new('outboxctl tail --no-follow -n 1', NO_COLOR => 1);
my $line = $terminal->finish;
$line =~ s/\r?\n//;
is(length $line, 160, 'on a terminal a line is cut where the screen ends');

# following

sub follow {
    my (@words) = @_;
    my %run = (out => '');
    $run{handle} = IPC::Run::start([ $ENV{OUTBOXCTL}, 'tail', '--json', @words ], '<', \undef, '>', \$run{out}, '2>', \$run{err}, IPC::Run::timeout(60));
    return \%run;
}

my $following = follow(qw(-n 1));
my $one = follow(qw(later -n 0));
$following->{handle}->pump until $following->{out} =~ /\n/;
# the other one has nothing to say, and shall have begun as well
poll_until(sub { (() = $redis->cmd('CLIENT', 'LIST') =~ /^.* cmd=xread /mg) == 2 }, 'both wait for more');
emit_some($node, 30);
$node->safe_psql('postgres', "SELECT outbox.emit('later.on', '{}')");
ok(flush($node), 'more events, and one of a new topic');
my @now = everything();
my @new = @now[ @all + 1 .. $#now ];
$following->{handle}->pump until (() = $following->{out} =~ /\n/g) >= 1 + @new;
@shown = decode($following->{out});
is(join(' ', sort map { $_->{position} } @shown), join(' ', sort map { $_->[0] } @now[ @all .. $#now ]), 'what comes is shown, once');
my %order;
push @{ $order{ $_->{stream} } }, $_->{position} for @shown;
for my $stream (sort keys %order) {
    my @of_stream = grep { $_->[1] eq $stream } @now[ @all .. $#now ];
    is(join(' ', @{ $order{$stream} }), join(' ', map { $_->[0] } @of_stream), "$stream in order");
}
ok($order{'outbox:{later}'}, 'also of a stream that was not there');
$one->{handle}->pump until $one->{out} =~ /\n/;
is(positions(decode($one->{out})), positions(grep { $_->{topic} eq 'later' } @shown), 'which can be waited for by name');
$_->{handle}->signal('INT') for $following, $one;
$following->{handle}->finish;
is($following->{handle}->full_result(0) & 127, 2, 'ctrl-c ends it as every tail');
$one->{handle}->finish;

$following = follow(qw(-n 1));
$following->{handle}->pump until $following->{out} =~ /\n/;
$redis->kill9;
$following->{handle}->finish;
is($following->{handle}->result(0), 3, 'without Redis it ends');
like($following->{err}, qr/Redis at ".*"/, 'and says why');

done_testing();
